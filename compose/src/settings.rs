//! The configuration: defaults, then a TOML file, then the environment; checked before the first connection.
//!
//! ```toml
//! [kafka]                                   # see suture_topics::settings
//! bootstrap = "kafka-1:9092,kafka-2:9092,kafka-3:9092"
//! prefix = "suture"
//! [kafka.properties]                        # handed to librdkafka as it is
//! "security.protocol" = "SASL_SSL"
//!
//! [keys]                                    # of ingest; participants check the identity key's fingerprint if they have it
//! identity_file = "/etc/suture/identity.key"
//! hash_id = "k1"
//! hash_file = "/etc/suture/hash.key"
//!
//! [ingest]
//! rules = "rules.toml"
//!
//! [coordinator]                             # see suture_coordinator::service
//! window = 50000
//!
//! [coordinator.cleanup]                     # see suture_coordinator::cleanup
//! keep_s = 2592000                          # no backup of a participant's database that might be restored is older
//!
//! [[coordinator.pass]]                      # see suture_coordinator::passing
//! shard = 3
//! offset = 118
//! because = "a producer was tried there, ticket 4711"
//!
//! [participants]
//! hospital = "participants/hospital.postgres.toml"
//! ```
//!
//! Paths in the file start at the file's folder. In the environment a key is written with two underscores between its
//! parts: `SUTURE__KAFKA__BOOTSTRAP`, `SUTURE__KEYS__IDENTITY`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use suture_contract::ids::{KeyId, Participant};
use suture_contract::keys::{HashKey, IdentityKey, MIN_SECRET_BYTES};
use suture_coordinator::service::CoordinatorSettings;
use suture_coordinator_core::ingest::Keys;
use suture_coordinator_core::ingest::rules::Rules;
use suture_participants::config::ParticipantConfig;
use suture_topics::settings::KafkaSettings;

/// Prints a good secret.
const MAKE_SECRET: &str = "head -c 32 /dev/urandom | base64";

/// A whole configuration file. Each command takes the sections that it needs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How to reach Kafka.
    pub kafka: KafkaSettings,
    /// The keys.
    #[serde(default)]
    keys: KeySettings,
    /// Ingest.
    #[serde(default)]
    ingest: IngestSettings,
    /// The coordinator.
    #[serde(default)]
    pub coordinator: CoordinatorSettings,
    /// Each participant's own file.
    #[serde(default)]
    participants: BTreeMap<String, PathBuf>,
    /// Where the file is.
    #[serde(skip)]
    file: PathBuf,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeySettings {
    identity: Option<String>,
    identity_file: Option<PathBuf>,
    hash_id: Option<String>,
    hash: Option<String>,
    hash_file: Option<PathBuf>,
}

/// Shows where the secrets come from, and never them.
impl std::fmt::Debug for KeySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { identity_file, hash_id, hash_file, .. } = self;
        f.debug_struct("KeySettings")
            .field("identity_file", identity_file)
            .field("hash_id", hash_id)
            .field("hash_file", hash_file)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct IngestSettings {
    rules: Option<PathBuf>,
}

impl Settings {
    /// Reads the file and the environment, and checks what can be checked without a connection.
    pub fn load(file: &Path) -> anyhow::Result<Self> {
        if !file.is_file() {
            bail!("{}: there is no such file; name the configuration with --config FILE", file.display());
        }
        let read = config::Config::builder()
            .add_source(config::File::from(file).format(config::FileFormat::Toml))
            .add_source(config::Environment::with_prefix("SUTURE").prefix_separator("__").separator("__"))
            .build()
            .and_then(config::Config::try_deserialize::<Self>);
        let mut settings =
            read.with_context(|| format!("{}: correct this, or the SUTURE__... variable", file.display()))?;
        settings.file = file.to_path_buf();
        settings.kafka.check().with_context(|| file.display().to_string())?;
        if settings.coordinator.window == 0 {
            bail!("{}: coordinator.window is 0, and nothing would ever be read; give at least 1", file.display());
        }
        Ok(settings)
    }

    /// The key that makes business keys and pseudonyms, if it is configured.
    pub fn identity_key(&self) -> anyhow::Result<Option<IdentityKey>> {
        let KeySettings { identity, identity_file, .. } = &self.keys;
        let Some(secret) = self.secret("keys.identity", identity.as_deref(), identity_file.as_deref())? else {
            return Ok(None);
        };
        Ok(Some(
            IdentityKey::new(secret.as_bytes()).with_context(|| format!("{}: keys.identity", self.file.display()))?,
        ))
    }

    /// The key that makes hashes of requests, if it is configured.
    pub fn hash_key(&self) -> anyhow::Result<Option<HashKey>> {
        let at = |key: &str| format!("{}: {key}", self.file.display());
        let KeySettings { hash_id, hash, hash_file, .. } = &self.keys;
        let Some(secret) = self.secret("keys.hash", hash.as_deref(), hash_file.as_deref())? else { return Ok(None) };
        let id: KeyId = hash_id.as_deref().unwrap_or("k1").parse().with_context(|| at("keys.hash_id"))?;
        Ok(Some(HashKey::new(id, secret.as_bytes()).with_context(|| at("keys.hash"))?))
    }

    /// Both keys; ingest cannot do without.
    pub fn keys(&self) -> anyhow::Result<Keys> {
        let at = |key: &str| format!("{}: {key}", self.file.display());
        let identity = self.identity_key()?.with_context(|| {
            format!(
                "{} is missing; give keys.identity_file, the path of a file with at least 16 secret bytes",
                at("keys.identity")
            )
        })?;
        let hash = self.hash_key()?.with_context(|| {
            format!(
                "{} is missing; give keys.hash_file, the path of a file with at least 16 secret bytes",
                at("keys.hash")
            )
        })?;
        Ok(Keys { identity, hash })
    }

    /// The files that hold secrets, by their key in the configuration.
    pub fn key_files(&self) -> Vec<(&'static str, PathBuf)> {
        let files = [("identity_file", &self.keys.identity_file), ("hash_file", &self.keys.hash_file)];
        files.into_iter().filter_map(|(key, file)| Some((key, self.beside(file.as_ref()?)))).collect()
    }

    /// Whether there are rules here.
    pub fn has_rules(&self) -> bool {
        self.ingest.rules.is_some()
    }

    /// The compiled rules of ingest.
    pub fn rules(&self) -> anyhow::Result<Rules> {
        let Some(rules) = &self.ingest.rules else {
            bail!("{}: ingest.rules is missing; give the path of a file with [[rule]] tables", self.file.display());
        };
        load_rules(&self.beside(rules)).with_context(|| format!("{}: ingest.rules", self.file.display()))
    }

    /// Participants that the rules name and that have no file here, if any has one. Theirs may be elsewhere; or a name is
    /// written wrong somewhere.
    pub fn not_configured(&self, rules: &Rules) -> Vec<Participant> {
        let is_missing = |name: &&&Participant| !self.participants.contains_key(name.as_str());
        match self.participants.is_empty() {
            true => Vec::new(),
            false => rules.participants().iter().filter(is_missing).copied().cloned().collect(),
        }
    }

    /// A participant's own configuration.
    pub fn participant(&self, name: &str) -> anyhow::Result<ParticipantConfig> {
        let Some(path) = self.participants.get(name) else {
            let known: Vec<_> = self.participants.keys().map(String::as_str).collect();
            bail!(
                "{}: participants.{name} is missing; give the path of its file (configured are: {})",
                self.file.display(),
                if known.is_empty() { "none".to_string() } else { known.join(", ") }
            );
        };
        let path = self.beside(path);
        let config =
            ParticipantConfig::load(&path).with_context(|| format!("{}: participants.{name}", self.file.display()))?;
        if config.name.as_str() != name {
            bail!("{}: name is {}, but {} calls it {name}", path.display(), config.name, self.file.display());
        }
        Ok(config)
    }

    /// The file, for messages.
    pub fn file_name(&self) -> std::path::Display<'_> {
        self.file.display()
    }

    /// The participants that have a file of their own here.
    pub fn participants(&self) -> impl Iterator<Item = &str> {
        self.participants.keys().map(String::as_str)
    }

    /// The participants that this file knows: those with a file of their own and those that a rule names.
    pub fn participant_names(&self) -> anyhow::Result<Vec<Participant>> {
        let mut names = Vec::new();
        for name in self.participants.keys() {
            let name: Participant =
                name.parse().with_context(|| format!("{}: participants.{name}", self.file.display()))?;
            names.push(name);
        }
        if self.ingest.rules.is_some() {
            names.extend(self.rules()?.participants().into_iter().cloned());
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// A secret that is long enough, if one is given.
    fn secret(&self, key: &str, given: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<String>> {
        let settings = self.file.display();
        let (secret, place, make) = match (given, file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => bail!("{settings}: {key} and {key}_file are both given; keep one"),
            (Some(secret), None) => (secret.to_string(), key.to_string(), MAKE_SECRET.to_string()),
            (None, Some(path)) => {
                let path = self.beside(path);
                let (place, make) =
                    (format!("{key}_file: {}", path.display()), format!("{MAKE_SECRET} > {}", path.display()));
                let secret = std::fs::read_to_string(&path).with_context(|| {
                    format!("{settings}: {place} cannot be read; put its copy back; only a first installation makes it, with `{make}`")
                })?;
                (secret.trim().to_string(), place, make)
            }
        };
        if secret.len() < MIN_SECRET_BYTES {
            let bytes = secret.len();
            bail!(
                "{settings}: {place} has {bytes} bytes, and must have at least {MIN_SECRET_BYTES}; make one with `{make}`"
            );
        }
        Ok(Some(secret))
    }

    fn beside(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }
}

/// Reads and compiles a file of rules.
pub fn load_rules(file: &Path) -> anyhow::Result<Rules> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read; check the path", file.display()))?;
    Rules::parse(&text).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KAFKA: &str = "[kafka]\nbootstrap = \"localhost:9092\"\nprefix = \"suture\"\n";

    fn settings(folder: &Path, text: &str) -> Settings {
        let file = folder.join("suture.toml");
        std::fs::write(&file, format!("{KAFKA}{text}")).unwrap();
        Settings::load(&file).unwrap()
    }

    fn said<T>(result: anyhow::Result<T>) -> String {
        format!("{:#}", result.err().expect("refused"))
    }

    #[test]
    fn an_error_names_the_file_the_key_and_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(folder.path().join("short.key"), "short\n").unwrap();
        let text = "[keys]\nidentity_file = \"short.key\"\nhash_file = \"no.key\"\n\
                    [ingest]\nrules = \"no.toml\"\n[participants]\nbank = \"bank.toml\"";
        let settings_with = |text: &str| settings(folder.path(), text);
        let of_files = settings_with(text);
        let (file, make) = (at("suture.toml"), "make one with `head -c 32 /dev/urandom | base64");
        let expected = format!(
            "{file}: keys.identity_file: {} has 5 bytes, and must have at least 16; {make} > ",
            at("short.key")
        );
        assert!(said(of_files.identity_key()).starts_with(&expected), "{}", said(of_files.identity_key()));
        for (refused, place) in [
            (said(of_files.rules()), format!("{file}: ingest.rules: {}: cannot be read", at("no.toml"))),
            (
                said(of_files.participant("bank")),
                format!("{file}: participants.bank: {}: file: cannot", at("bank.toml")),
            ),
        ] {
            assert!(refused.starts_with(&place), "{refused}");
        }
        let of_texts = settings_with("[keys]\nidentity = \"sixteen bytes and more\"\nhash = \"short\"");
        let refused = said(of_texts.keys());
        assert!(refused.starts_with(&format!("{file}: keys.hash has 5 bytes")) && refused.contains(make), "{refused}");
    }

    #[test]
    fn a_name_that_only_a_rule_has_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let rules = crate::demo::demo_rules().unwrap();
        let of = |text: &str| settings(folder.path(), text).not_configured(&rules);
        assert_eq!(of("[participants]\nhospital = \"h\"\nsurgeon-log = \"s\"\ninsurer = \"i\""), []);
        assert_eq!(of(""), [], "an ingest of its own need not know anybody");
        assert_eq!(
            of("[participants]\nhospital = \"h\"\nsurgeonlog = \"s\"\ninsurer = \"i\""),
            ["surgeon-log".parse().unwrap()]
        );
    }
}
