//! This host: its addresses and names, and which of the peer URLs are its own.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, ToSocketAddrs as _},
};

use crate::plan::restore::Here;

/// The addresses and names of this host; `hosts` are those of peer URLs. One that is a name counts as this host's if it resolves to an
/// address of it.
///
/// The kernel's own tables are read: to bind an address would succeed for a foreign one where `ip_nonlocal_bind` is set, as it is beside keepalived.
#[must_use]
pub fn here<'a>(nodename: &str, hosts: impl Iterator<Item = &'a str>) -> Here {
    let ipv4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let ipv6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut addresses = local_ipv4(&ipv4);
    addresses.extend(local_ipv6(&ipv6));
    addresses.retain(|address| !address.is_loopback());
    addresses.sort();
    addresses.dedup();
    let mut names = vec![nodename.to_owned()];
    names.extend(nodename.split_once('.').map(|(short, _)| short.to_owned()));
    for host in hosts.filter(|host| host.parse::<IpAddr>().is_err() && !host.starts_with('[')) {
        let resolved = (host, 0_u16).to_socket_addrs();
        if resolved.is_ok_and(|mut found| found.any(|socket| addresses.contains(&socket.ip()))) {
            names.push(host.to_owned());
        }
    }
    Here { addresses, names }
}

/// `/proc/net/fib_trie`: an address, and on the line below it that it is `/32 host LOCAL`.
fn local_ipv4(table: &str) -> Vec<IpAddr> {
    let mut last = None;
    let mut found = Vec::new();
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<IpAddr>().ok();
        } else if line == "/32 host LOCAL" {
            found.extend(last);
        }
    }
    found
}

/// `/proc/net/if_inet6`: 32 hexadecimal digits begin each line.
fn local_ipv6(table: &str) -> Vec<IpAddr> {
    let address = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    table.lines().filter_map(address).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 4\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 192.0.2.0\n        /24 link UNICAST\nLocal:\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.11\n        /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\n";
        assert_eq!(local_ipv4(table), ["127.0.0.1".parse::<IpAddr>().unwrap(), "192.0.2.11".parse().unwrap()]);
        let table = "20010db8000000000000000000000002 02 40 00 80     eth0\n";
        assert_eq!(local_ipv6(table), ["2001:db8::2".parse::<IpAddr>().unwrap()]);
        let here = here("cp1.example", ["localhost"].into_iter());
        assert_eq!(here.names, ["cp1.example", "cp1"], "loopback is every host's");
        assert!(here.addresses.iter().all(|address| !address.is_loopback()));
    }
}
