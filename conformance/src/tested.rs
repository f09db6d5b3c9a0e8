//! The versions of servers that the published matrix was run with.
//!
//! What a backend claims of another version is its authors' reading of that version's documentation and changes:
//! claimed, not tested.

/// The servers of `docs/matrix.md`, as [`Guarantees::deployment`](tenure_core::Guarantees::deployment) begins.
pub const TESTED: &[&str] = &["etcd 3.4.23", "Redis 7.0.15", "PostgreSQL 15.18"];

/// Whether the published matrix was run with the server of this deployment; nothing for a store without a server.
///
/// ```
/// use tenure_conformance::is_tested;
///
/// assert_eq!(is_tested("etcd 3.4.23, 1 member"), Some(true));
/// assert_eq!(is_tested("etcd 3.6.1, 1 member"), Some(false));
/// assert_eq!(is_tested("embedded, in this process's memory"), None);
/// ```
pub fn is_tested(deployment: &str) -> Option<bool> {
    let server = deployment.split(',').next()?.trim();
    // A name and a version.
    let (_, version) = server.rsplit_once(' ')?;
    let has_version = version.starts_with(|first: char| first.is_ascii_digit());
    has_version.then(|| TESTED.contains(&server))
}
