//! Signatures (minisign) and `SHA256SUMS`.
//!
//! Only keys that the caller names are trusted, never one found beside what it signed. A signature says "unchanged since the holder of that
//! key wrote it". Formats: <https://jedisct1.github.io/minisign/>, coreutils' `sha256sum`; both are checked with the stock tools in the tests.

use std::{collections::BTreeMap, fmt, fs, io::Cursor, path::Path};

use minisign::{KeyPair, SecretKeyBox, SignatureBox};

use crate::{
    at::{At as _, PathError},
    durable,
    record::Sha256Hex,
};

/// What is wrong with a key, a signature or a list of digests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key file could not be read or written.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The text is not a public key.
    #[error("`{0}` is neither a minisign public key nor a file that holds one")]
    BadPublicKey(String),
    /// The file is not a usable secret key.
    #[error("{path}: {problem}")]
    BadSecretKey {
        /// The key file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No trusted key made this signature.
    #[error("no trusted key made this signature (key {key})")]
    Untrusted {
        /// The signer's key number, as the signature claims it.
        key: String,
    },
    /// A trusted key's signature does not fit the data.
    #[error("the signature of key {key} does not fit the file")]
    Mismatch {
        /// The trusted key.
        key: String,
    },
    /// The file is no signature.
    #[error("the signature file is not in minisign's format")]
    BadSignature,
    /// The library could not make a key or a signature.
    #[error("signing: {0}")]
    Signing(String),
    /// A line of `SHA256SUMS` is not `<digest>  <name>`.
    #[error("line {line} of SHA256SUMS is not `<digest>  <file>`")]
    BadSums {
        /// Counted from 1.
        line: usize,
    },
}

/// A minisign public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(minisign::PublicKey);

impl PublicKey {
    /// Reads a key given as `RWQ…` or as the path of a `.pub` file.
    ///
    /// # Errors
    /// [`Error::BadPublicKey`]; [`Error::Io`] for a file that cannot be read.
    pub fn from_key_or_file(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadPublicKey(text.to_owned());
        if let Ok(key) = minisign::PublicKey::from_base64(text.trim()) {
            return Ok(Self(key));
        }
        let path = Path::new(text);
        if !path.is_file() {
            return Err(bad());
        }
        let contents = fs::read_to_string(path).at(path)?;
        let line = contents.lines().find(|line| !line.starts_with("untrusted comment:")).ok_or_else(bad)?;
        minisign::PublicKey::from_base64(line.trim()).map(Self).map_err(|_cause| bad())
    }

    /// The key as `minisign -P` takes it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        self.0.to_base64()
    }

    /// The key as a `minisign -p` file.
    #[must_use]
    pub fn to_file(&self) -> String {
        format!("untrusted comment: minisign public key {}\n{}\n", self.number(), self.to_base64())
    }

    /// The key number that signatures carry.
    #[must_use]
    pub fn number(&self) -> String {
        key_number(self.0.keynum())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.to_base64())
    }
}

/// minisign prints the eight bytes of a key number as a little-endian integer.
fn key_number(bytes: &[u8]) -> String {
    let number = bytes.iter().rev().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    format!("{number:016X}")
}

/// A signing key without a password, since root's cron has nobody to type one. The file's mode protects it.
pub struct SecretKey {
    secret: minisign::SecretKey,
    public: PublicKey,
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public.number())
    }
}

impl SecretKey {
    /// Makes a key pair and writes the secret half to `path`, mode 0600, which must not exist.
    ///
    /// # Errors
    /// [`Error::Io`], also where the file exists; [`Error::Signing`] where the system has no randomness.
    pub fn generate(path: &Path) -> Result<Self, Error> {
        let pair = KeyPair::generate_unencrypted_keypair().map_err(|e| Error::Signing(e.to_string()))?;
        let public = PublicKey(pair.pk);
        let comment = format!("etcd-dr signing key {}", public.number());
        let file = pair.sk.to_box(Some(&comment)).map_err(|e| Error::Signing(e.to_string()))?;
        durable::create(path, file.into_string().as_bytes(), durable::FILE_MODE)?;
        Ok(Self { secret: pair.sk, public })
    }

    /// Reads the secret half; stock `minisign -G -W` writes the same format.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadSecretKey`] for one with a password or in another format.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bad = |problem: &str| Error::BadSecretKey { path: path.display().to_string(), problem: problem.to_owned() };
        let contents = fs::read_to_string(path).at(path)?;
        let sealed = SecretKeyBox::from_string(&contents).map_err(|_cause| bad("this is no minisign secret key"))?;
        let secret = sealed.into_unencrypted_secret_key().map_err(|_cause| {
            bad("this is no minisign secret key without a password; cron cannot type one (make it with `minisign -G -W`)")
        })?;
        let public = minisign::PublicKey::from_secret_key(&secret)
            .map(PublicKey)
            .map_err(|_cause| bad("its public half cannot be derived"))?;
        Ok(Self { secret, public })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `data`; `comment` is covered by the signature and shown by `minisign -V`. The result is the text of a `.minisig` file.
    ///
    /// # Errors
    /// [`Error::Signing`].
    pub fn sign(&self, data: &[u8], comment: &str) -> Result<String, Error> {
        let untrusted = format!("signature of etcd-dr key {}", self.public.number());
        minisign::sign(Some(&self.public.0), &self.secret, Cursor::new(data), Some(comment), Some(&untrusted))
            .map(SignatureBox::into_string)
            .map_err(|e| Error::Signing(e.to_string()))
    }
}

/// The keys that the caller named.
#[derive(Debug, Clone, Default)]
pub struct Trusted(Vec<PublicKey>);

impl Trusted {
    /// Exactly these keys.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }

    /// Whether nobody is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks a `.minisig` file's text over `data` and says which key made it.
    ///
    /// # Errors
    /// [`Error::BadSignature`], [`Error::Untrusted`], [`Error::Mismatch`].
    pub fn verify(&self, data: &[u8], signature: &str) -> Result<&PublicKey, Error> {
        let signature = SignatureBox::from_string(signature).map_err(|_cause| Error::BadSignature)?;
        let number = key_number(signature.keynum());
        let key = self.0.iter().find(|key| key.number() == number).ok_or(Error::Untrusted { key: number.clone() })?;
        minisign::verify(&key.0, &signature, Cursor::new(data), true, false, false)
            .map_err(|_cause| Error::Mismatch { key: number })?;
        Ok(key)
    }
}

/// The contents of `SHA256SUMS`: plain names in one directory, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sums(pub BTreeMap<String, Sha256Hex>);

impl Sums {
    /// Reads what `sha256sum` writes. Names with a slash or a backslash, and a name twice, are refused: they would reach outside the backup.
    ///
    /// # Errors
    /// [`Error::BadSums`] with the line.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut sums = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let bad = || Error::BadSums { line: index.saturating_add(1) };
            let (digest, name) = line.split_once("  ").ok_or_else(bad)?;
            let digest = digest.parse().map_err(|_cause| bad())?;
            if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
                return Err(bad());
            }
            if sums.insert(name.to_owned(), digest).is_some() {
                return Err(bad());
            }
        }
        Ok(Self(sums))
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, digest)| writeln!(f, "{digest}  {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> (tempfile::TempDir, SecretKey) {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate(&dir.path().join("signing.key")).unwrap();
        (dir, key)
    }

    #[test]
    fn a_signature_fits_its_data_and_its_key_only() {
        let (dir, secret) = key();
        let (_other_dir, other) = key();
        let signature = secret.sign(b"data", "backup x").unwrap();
        let trusted = Trusted::new(vec![other.public().clone(), secret.public().clone()]);
        assert_eq!(trusted.verify(b"data", &signature).unwrap(), secret.public());
        assert!(matches!(trusted.verify(b"Data", &signature), Err(Error::Mismatch { .. })));
        let only_other = Trusted::new(vec![other.public().clone()]);
        assert!(matches!(only_other.verify(b"data", &signature), Err(Error::Untrusted { .. })));
        assert!(matches!(trusted.verify(b"data", "nonsense"), Err(Error::BadSignature)));
        let again = SecretKey::load(&dir.path().join("signing.key")).unwrap();
        assert_eq!(again.public(), secret.public());
    }

    #[test]
    fn the_trusted_comment_is_covered() {
        let (_dir, secret) = key();
        let trusted = Trusted::new(vec![secret.public().clone()]);
        let signature = secret.sign(b"data", "backup one").unwrap().replace("backup one", "backup two");
        assert!(trusted.verify(b"data", &signature).is_err());
    }

    #[test]
    fn sums_take_plain_names_once() {
        let digest = "ab".repeat(32);
        let text = format!("{digest}  RECOVERY.md\n{digest}  backup.json\n");
        assert_eq!(Sums::parse(&text).unwrap().to_string(), text);
        for line in [
            format!("{digest}  ../x"),
            format!("{digest}  a/b"),
            format!("{digest} x"),
            format!("{digest}  x\n{digest}  x"),
            format!("{digest}  .."),
            "zz  x".to_owned(),
        ] {
            assert!(Sums::parse(&line).is_err(), "{line}");
        }
    }
}
