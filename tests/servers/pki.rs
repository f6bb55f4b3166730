//! A throw-away certificate authority, named as kubeadm names its files, and certificates that must be refused.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// A certificate and its key, as PEM files of mode 0600.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    /// Both files, as tonic wants them.
    pub fn identity(&self) -> Identity {
        Identity::from_pem(read(&self.cert), read(&self.key))
    }
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pem: PathBuf,
}

/// Two authorities: the cluster's own, and a foreign one that no server trusts.
pub struct Pki {
    dir: PathBuf,
    own: Authority,
    foreign: Authority,
}

#[derive(Clone, Copy)]
enum Use {
    Server,
    Client,
    /// A peer is both at once.
    Peer,
}

impl Pki {
    /// Makes both authorities in `dir`, which is created with mode 0700.
    pub fn new(dir: &Path) -> Self {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let own = authority(dir, "ca", "etcd-ca");
        let foreign = authority(dir, "foreign-ca", "some-other-ca");
        Self { dir: dir.to_path_buf(), own, foreign }
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority that members and clients trust.
    pub fn ca(&self) -> &Path {
        &self.own.pem
    }

    /// An authority that nobody trusts: for "wrong CA".
    pub fn foreign_ca(&self) -> &Path {
        &self.foreign.pem
    }

    /// A server certificate for these host names and addresses.
    pub fn server_cert(&self, name: &str, hosts: &[&str]) -> Pair {
        self.issue(&self.own, name, name, hosts, Use::Server, false)
    }

    /// A peer certificate for these host names and addresses.
    pub fn peer_cert(&self, name: &str, hosts: &[&str]) -> Pair {
        self.issue(&self.own, name, name, hosts, Use::Peer, false)
    }

    /// A server certificate, of the right authority, that names another host: for "name mismatch".
    pub fn wrong_name_cert(&self) -> Pair {
        self.issue(&self.own, "wrong-name", "etcd.example.org", &["etcd.example.org"], Use::Server, false)
    }

    /// A client certificate with this common name.
    pub fn client_cert(&self, name: &str) -> Pair {
        self.issue(&self.own, name, name, &[], Use::Client, false)
    }

    /// A client certificate that ended in 2021.
    pub fn expired_client_cert(&self) -> Pair {
        self.issue(&self.own, "expired-client", "etcd-dr", &[], Use::Client, true)
    }

    /// A client certificate of the authority that nobody trusts.
    pub fn foreign_client_cert(&self) -> Pair {
        self.issue(&self.foreign, "foreign-client", "etcd-dr", &[], Use::Client, false)
    }

    /// TLS of a client that trusts our authority and shows `pair`.
    pub fn client_tls(&self, pair: &Pair) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(self.ca()))).identity(pair.identity())
    }

    /// TLS of a server that shows `pair` and wants a client certificate of our authority, as etcd does.
    pub fn server_tls(&self, pair: &Pair) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(pair.identity()).client_ca_root(Certificate::from_pem(read(self.ca())))
    }

    fn issue(&self, by: &Authority, file: &str, common_name: &str, hosts: &[&str], usage: Use, expired: bool) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        // `new` makes an address of what looks like one, and a DNS name of the rest.
        let mut params = CertificateParams::new(hosts).expect("host names");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match usage {
            Use::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Use::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Use::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let cert = params.signed_by(&key, &by.issuer).expect("a signed certificate");
        let pair = Pair { cert: self.dir.join(format!("{file}.crt")), key: self.dir.join(format!("{file}.key")) };
        write(&pair.cert, &cert.pem());
        write(&pair.key, &key.serialize_pem());
        pair
    }
}

fn authority(dir: &Path, file: &str, common_name: &str) -> Authority {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let pem = dir.join(format!("{file}.crt"));
    write(&dir.join(format!("{file}.key")), &key.serialize_pem());
    let issuer = CertifiedIssuer::self_signed(params, key).expect("a self-signed authority");
    write(&pem, &issuer.pem());
    Authority { issuer, pem }
}

fn write(path: &Path, pem: &str) {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(pem.as_bytes()))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
