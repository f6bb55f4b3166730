//! A client URL of etcd.

use std::{fmt, str::FromStr};

use url::{Host, Url};

/// etcd's client port.
const PORT: u16 = 2379;

/// A client URL that is dialled, always with TLS; behind a virtual address it is *some* member.
///
/// Written as `https://host:port`, or `host:port`, or `host`; the port is 2379 unless it is given. Two spellings of one endpoint are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: Host<String>,
    port: u16,
}

/// Why a text is no endpoint. The words follow the text they speak of, which is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// `http://`.
    #[error("is without TLS; etcd-dr always verifies etcd's certificate: write https://")]
    Plain,
    /// `unix://` or `unixs://`.
    #[error("is a Unix socket; etcd-dr dials members over TLS: write https://HOST:2379")]
    Socket,
    /// Another scheme.
    #[error("has a scheme that etcd does not serve; write https://HOST:2379")]
    Scheme,
    /// A user name or a password in the URL.
    #[error("holds a user or a password; they belong in `user` and `password_file`")]
    Login,
    /// More than a host and a port.
    #[error("has a path, query or fragment; write https://HOST:2379 alone")]
    Surplus,
    /// No host and port can be read from it.
    #[error("is no endpoint; write https://HOST:2379")]
    Shape,
}

impl Endpoint {
    /// A name or an address as certificates hold it: an IPv6 address without brackets.
    #[must_use]
    pub fn host(&self) -> String {
        match &self.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        }
    }

    /// The port; 2379 where none was given.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}:{}", self.host, self.port)
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let text = text.trim();
        let lower = text.to_ascii_lowercase();
        if lower.starts_with("unix:") || lower.starts_with("unixs:") {
            return Err(EndpointError::Socket);
        }
        let rest = match lower.split_once("://").map(|(scheme, _)| scheme) {
            None => text,
            Some("https") => text.get("https://".len()..).unwrap_or_default(),
            Some("http") => return Err(EndpointError::Plain),
            Some(_) => return Err(EndpointError::Scheme),
        };
        if rest.contains('@') {
            return Err(EndpointError::Login);
        }
        // A slash too many is skipped by URL readers; here it is a host that was forgotten.
        if rest.is_empty() || rest.starts_with(['/', '\\']) || rest.contains(char::is_whitespace) {
            return Err(EndpointError::Shape);
        }
        let read = |scheme: &str| Url::parse(&format!("{scheme}://{rest}")).map_err(|_shape| EndpointError::Shape);
        let url = read("https")?;
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(EndpointError::Surplus);
        }
        // A URL forgets a port that is its scheme's own, so that a given 443 is only seen as another scheme's.
        let port = url.port().or(read("http")?.port()).unwrap_or(PORT);
        let host = url.host().ok_or(EndpointError::Shape)?.to_owned();
        if port == 0 { Err(EndpointError::Shape) } else { Ok(Self { host, port }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_a_host_and_a_port() {
        for (text, canonical) in [
            ("https://192.0.2.10:2379", "https://192.0.2.10:2379"),
            ("192.0.2.10:2379", "https://192.0.2.10:2379"),
            ("192.0.2.10", "https://192.0.2.10:2379"),
            ("HTTPS://Etcd.Example/", "https://etcd.example:2379"),
            ("https://etcd.example:443", "https://etcd.example:443"),
            ("https://etcd.example:80", "https://etcd.example:80"),
            ("[2001:db8::1]:12379", "https://[2001:db8::1]:12379"),
            (" localhost:2379 ", "https://localhost:2379"),
        ] {
            let endpoint = text.parse::<Endpoint>().unwrap();
            assert_eq!(endpoint.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<Endpoint>(), Ok(endpoint), "{text}");
        }
        let six: Endpoint = "https://[2001:db8::1]:12379".parse().unwrap();
        assert_eq!((six.host().as_str(), six.port()), ("2001:db8::1", 12379));
    }

    #[test]
    fn what_is_no_endpoint_is_told_apart() {
        for (text, error) in [
            ("http://192.0.2.10:2379", EndpointError::Plain),
            ("unix:///run/etcd.sock", EndpointError::Socket),
            ("unixs://localhost:0", EndpointError::Socket),
            ("ftp://h", EndpointError::Scheme),
            ("https://root:hunter2@h:2379", EndpointError::Login),
            ("https://h:2379/v3", EndpointError::Surplus),
            ("h:2379?x", EndpointError::Surplus),
            ("", EndpointError::Shape),
            ("https://", EndpointError::Shape),
            ("https:///h", EndpointError::Shape),
            ("h:99999", EndpointError::Shape),
            ("h:0", EndpointError::Shape),
            ("a b", EndpointError::Shape),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }
}
