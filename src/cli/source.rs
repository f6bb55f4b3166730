//! SOURCE on the command line: found in the store, or wherever it lies.

use super::{Context, error::Failure, keys};
use crate::{
    catalog::Catalog,
    seal::Identities,
    source::{self, Form, Named, Source},
    store::Store,
};

/// What was found, and the store around it where one was needed or is at hand.
pub struct Found {
    /// The snapshot.
    pub source: Source,
    /// The store, and what is in it.
    pub store: Option<(Store, Catalog)>,
}

/// Finds what `text` names: a backup's id or `latest` in the store, a backup's directory, or a file.
///
/// # Errors
/// As [`source`] and the store have them; nothing is believed without a trusted key.
pub fn find(context: &Context, text: &str, from: Option<&str>) -> Result<Found, Failure> {
    let named = Named::parse(text)?;
    let trusted = context.trusted()?;
    if named.needs_trust() && trusted.is_empty() {
        return Err(Failure::no_trusted_key(&context.policy.signing.secret_key_file));
    }
    let min = context.policy.retention.min_proof;
    let (source, store) = match named {
        Named::InStore(text) => {
            let (store, catalog) = with_catalog(context)?;
            (source::in_catalog(&catalog, &text, min, from)?, Some((store, catalog)))
        }
        Named::Directory(path) => (source::in_directory(&path, &trusted, from)?, at_hand(context)),
        Named::File(path) => (source::file(&path, &trusted)?, at_hand(context)),
    };
    for warning in &source.warnings {
        tracing::warn!("{warning}");
    }
    Ok(Found { source, store })
}

fn with_catalog(context: &Context) -> Result<(Store, Catalog), Failure> {
    let store = context.open_store()?;
    let (catalog, _) = context.catalog(&store)?;
    Ok((store, catalog))
}

/// The store where there is one: a snapshot from elsewhere does not need it, and its journal may know more.
fn at_hand(context: &Context) -> Option<(Store, Catalog)> {
    with_catalog(context).ok()
}

/// The identity, where the source needs one.
///
/// # Errors
/// As [`keys::identities`].
pub fn identities(context: &Context, source: &Source) -> Result<Option<Identities>, Failure> {
    if source.form == Form::Sealed { keys::identities(context).map(Some) } else { Ok(None) }
}
