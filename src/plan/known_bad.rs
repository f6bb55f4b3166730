//! Releases of etcd that are known to have lost or changed data, and what to do about each.

/// A release: minor of etcd 3, and patch.
type Release = (u64, u64);

/// What is known of the release, with advice; null where nothing is. `version` is as Status says it, for instance `3.5.1`.
#[must_use]
pub fn advice(version: &str) -> Option<String> {
    let (minor, patch) = release(version)?;
    let cause = match (minor, patch) {
        (5, 0..=2) => {
            "can lose writes on one member in a crash, and its snapshots are perfect copies of wrong data (etcd issue 13766)"
        }
        (5, 3..=5) => "can apply entries twice when a defragmentation is interrupted (etcd issue 14733)",
        (4, 0..=37) | (5, 6..=22) | (6, 0..=4) => {
            "can damage its database when a snapshot is applied during a defragmentation (etcd issue 20650)"
        }
        (5, 23..=25) => "can keep removed members, which then block the way to 3.6 (etcd issue 20967)",
        _ => return None,
    };
    let target = match minor {
        4 => "3.4.38",
        5 => "3.5.26",
        _ => "3.6.5",
    };
    Some(format!("etcd {version} {cause}: go to {target} or newer"))
}

/// Minor and patch of an etcd 3; a suffix such as `-rc.0` is left out of account.
fn release(version: &str) -> Option<Release> {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
    let major: u64 = parts.next()?.parse().ok()?;
    let release = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (major == 3).then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_range_has_its_ends() {
        for bad in [
            "3.5.0",
            "3.5.2",
            "3.5.3",
            "3.5.5",
            "3.5.6",
            "3.5.22",
            "3.5.23",
            "3.5.25",
            "3.4.23",
            "3.4.37",
            "3.6.0",
            "3.6.4",
            "v3.5.1",
            "3.5.1-rc.0",
        ] {
            assert!(advice(bad).is_some(), "{bad}");
        }
        for good in ["3.5.26", "3.5.35", "3.4.38", "3.6.5", "3.6.16", "3.7.0", "4.5.1", "", "3.5", "Debian"] {
            assert!(advice(good).is_none(), "{good}");
        }
        assert!(advice("3.5.1").unwrap().contains("13766"));
        assert!(advice("3.5.4").unwrap().contains("14733"));
        assert!(advice("3.6.4").unwrap().contains("3.6.5"));
    }
}
