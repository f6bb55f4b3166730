//! Recipients (who can open) and identities (what opens): age's public and private halves.

use std::{fs, path::Path, str::FromStr as _, sync::Arc};

use age::{Encryptor, IdentityFile, NoCallbacks, plugin::RecipientPluginV1, secrecy::ExposeSecret as _, x25519};
use jiff::Timestamp;

use crate::at::{At as _, PathError};

/// What is wrong with a recipient or an identity.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The identity's file could not be read.
    #[error(transparent)]
    Io(#[from] PathError),
    /// The text is not a recipient.
    #[error("{origin}: this is no age recipient: {problem}")]
    BadRecipient {
        /// Which one. Never the text itself: it may be a secret key, put there by mistake.
        origin: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no recipient at all.
    #[error("no recipients: nobody could open the backup")]
    NoRecipients,
    /// age could not combine the recipients.
    #[error("the recipients cannot be used together: {0}")]
    Incompatible(String),
    /// The file holds no usable identity.
    #[error("{path}: {problem}")]
    BadIdentity {
        /// The identity file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Everybody who can open what is sealed.
pub struct Recipients {
    parsed: Vec<Box<dyn age::Recipient + Send + Sync>>,
    names: Vec<String>,
    takes_run_key: bool,
}

impl Recipients {
    /// Reads recipients, as the policy lists them.
    ///
    /// # Errors
    /// [`KeyError`] with the place of the one that is wrong; [`KeyError::NoRecipients`] where there is none.
    pub fn parse(list: &[String]) -> Result<Self, KeyError> {
        let mut recipients = Self { parsed: Vec::new(), names: Vec::new(), takes_run_key: true };
        for (index, text) in list.iter().enumerate() {
            recipients.parsed.push(parse(&format!("recipient {}", index.saturating_add(1)), text)?);
            recipients.names.push(text.clone());
        }
        if recipients.parsed.is_empty() {
            return Err(KeyError::NoRecipients);
        }
        // age refuses to mix post-quantum recipients with classic ones; the run's own key is a classic one.
        let probe = RunKey::generate();
        recipients.takes_run_key = recipients.combine(Some(&probe)).is_ok();
        recipients.encryptor(None)?;
        Ok(recipients)
    }

    /// The recipients as text, each once, in the policy's order.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a run's own key can be among them. Where it cannot, a run cannot prove that what it wrote opens.
    #[must_use]
    pub fn takes_run_key(&self) -> bool {
        self.takes_run_key
    }

    /// Prepares one file for these recipients, and for the run's own key where they allow it.
    ///
    /// # Errors
    /// [`KeyError::Incompatible`], also for a plugin that is not there.
    pub fn encryptor(&self, run: Option<&RunKey>) -> Result<Encryptor, KeyError> {
        self.combine(run.filter(|_| self.takes_run_key)).map_err(|error| KeyError::Incompatible(error.to_string()))
    }

    fn combine(&self, run: Option<&RunKey>) -> Result<Encryptor, age::EncryptError> {
        let own = run.iter().map(|run| &run.recipient as &dyn age::Recipient);
        let all = self.parsed.iter().map(|recipient| recipient.as_ref() as &dyn age::Recipient).chain(own);
        Encryptor::with_recipients(all)
    }
}

fn parse(origin: &str, text: &str) -> Result<Box<dyn age::Recipient + Send + Sync>, KeyError> {
    let bad = |problem: &str| KeyError::BadRecipient { origin: origin.to_owned(), problem: problem.to_owned() };
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err(bad("it is a secret key; take its public half (`age-keygen -y`) and treat this one as leaked"));
    }
    if text.starts_with("ssh-") {
        return Err(bad("ssh keys are not supported; use an age key (`etcd-dr keys generate`)"));
    }
    if let Ok(recipient) = x25519::Recipient::from_str(text) {
        return Ok(Box::new(recipient));
    }
    if let Ok(recipient) = text.parse::<age::tag::Recipient>() {
        return Ok(Box::new(recipient));
    }
    if let Ok(recipient) = text.parse::<age::tagpq::Recipient>() {
        return Ok(Box::new(recipient));
    }
    if let Ok(recipient) = text.parse::<age::plugin::Recipient>() {
        let name = recipient.plugin().to_owned();
        let plugin = RecipientPluginV1::new(&name, &[recipient], &[], NoCallbacks);
        return plugin.map(|plugin| Box::new(plugin) as _).map_err(|error| bad(&error.to_string()));
    }
    Err(bad("it is not `age1…`, or a character of it is wrong"))
}

/// The key that lives in one run's memory and lets that run prove what it stored. Dropped, it is zeroed.
#[derive(Clone)]
pub struct RunKey {
    recipient: x25519::Recipient,
    identities: Arc<Identities>,
}

impl RunKey {
    /// Makes a key.
    #[must_use]
    pub fn generate() -> Self {
        let identity = x25519::Identity::generate();
        Self { recipient: identity.to_public(), identities: Arc::new(Identities(vec![Box::new(identity)])) }
    }

    /// The key as what opens files.
    #[must_use]
    pub fn identities(&self) -> Arc<Identities> {
        Arc::clone(&self.identities)
    }
}

/// What opens files.
pub struct Identities(Vec<Box<dyn age::Identity + Send + Sync>>);

impl Identities {
    /// Reads an age identity file, as `age -i` takes it; plugins are found on `PATH`.
    ///
    /// # Errors
    /// [`KeyError::Io`]; [`KeyError::BadIdentity`] for one with a passphrase, since nobody is there to type it, or in another format.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let bad = |problem: String| KeyError::BadIdentity { path: path.display().to_string(), problem };
        let contents = fs::read(path).at(path)?;
        if contents.starts_with(b"age-encryption.org/") || contents.starts_with(b"-----BEGIN AGE") {
            return Err(bad(
                "this identity is itself encrypted; decrypt it with `age -d` to a file on a tmpfs".to_owned()
            ));
        }
        let file = IdentityFile::from_buffer(contents.as_slice())
            .map_err(|_cause| bad("this is no age identity file".to_owned()))?;
        let identities = file.into_identities().map_err(|error| bad(error.to_string()))?;
        if identities.is_empty() {
            return Err(bad("there is no identity in this file".to_owned()));
        }
        Ok(Self(identities))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| identity.as_ref() as &dyn age::Identity)
    }
}

/// A new age identity: the text of its file, as `age-keygen` writes it, and its recipient.
#[must_use]
pub fn generate_identity(now: Timestamp) -> (age::secrecy::SecretString, String) {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let file = format!("# created: {now:.0}\n# public key: {recipient}\n{}\n", identity.to_string().expose_secret());
    (file.into(), recipient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_key_among_recipients_is_refused_and_not_repeated() {
        let (file, _) = generate_identity(Timestamp::UNIX_EPOCH);
        let secret = file.expose_secret().lines().last().unwrap().to_owned();
        let error = Recipients::parse(std::slice::from_ref(&secret)).err().unwrap().to_string();
        assert!(error.contains("secret key") && error.contains("recipient 1"), "{error}");
        assert!(!error.contains(&secret), "{error}");
    }
}
