//! What a demo stands on: a folder, its keys, a broker, topics, and three seeded databases.

use anyhow::{Context, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use suture_contract::ids::{Deployment, LogLetters, Participant};
use suture_contract::keys::{HashKey, IdentityKey};
use suture_contract::topic_map::Topic;
use suture_coordinator_core::ingest::Keys;
use suture_coordinator_core::ingest::rules::Rules;
use suture_participants::config::{Database, ParticipantConfig};
use suture_participants::opened::OpenedResource;

use suture_topics::embedded::EmbeddedBroker;
use suture_topics::settings::KafkaSettings;

use super::report;
use crate::random;
use crate::seed::Seeds;

const RULES: &str = include_str!("../../config/rules.toml");

/// The three databases of the surgery, each with its configuration and its tables.
const PARTICIPANTS: [(&str, &str, &str); 3] = [
    (
        "hospital",
        include_str!("../../config/participants/hospital.sqlite.toml"),
        include_str!("../../schema/hospital.sqlite.sql"),
    ),
    (
        "surgeon-log",
        include_str!("../../config/participants/surgeon-log.sqlite.toml"),
        include_str!("../../schema/surgeon-log.sqlite.sql"),
    ),
    (
        "insurer",
        include_str!("../../config/participants/insurer.sqlite.toml"),
        include_str!("../../schema/insurer.sqlite.sql"),
    ),
];

/// Partitions of the upstream topic.
pub const UPSTREAM_PARTITIONS: u16 = 3;

/// Everything that does not change during a run.
pub struct World {
    /// How to reach the broker.
    pub kafka: KafkaSettings,
    /// The folder.
    pub folder: PathBuf,
    /// The upstream topic.
    pub upstream: String,
    /// The rules, reading the upstream topic.
    pub rules: Arc<Rules>,
    /// The keys.
    pub keys: Keys,
    is_embedded: bool,
    // Dropped last, in this order: the broker, the lock, and then the folder if it is a temporary one.
    _broker: Option<EmbeddedBroker>,
    _lock: File,
    temporary: Option<tempfile::TempDir>,
}

/// Branches that nobody can decide any more.
pub struct Doubts {
    /// Whose.
    pub participant: &'static str,
    /// Which.
    pub txids: Vec<String>,
}

impl World {
    /// Opens the folder, starts or finds the broker, and creates the topics.
    pub async fn open(data: Option<&Path>, bootstrap: Option<&str>) -> anyhow::Result<Result<Self, Doubts>> {
        let temporary = match data {
            Some(_) => None,
            None => {
                Some(tempfile::Builder::new().prefix("suture-demo-").tempdir().context("making a temporary folder")?)
            }
        };
        let folder = match (&temporary, data) {
            (Some(temporary), _) => temporary.path().to_path_buf(),
            (None, Some(folder)) => folder.to_path_buf(),
            (None, None) => bail!("no folder"),
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be created", folder.display()))?;
        let lock = lock(&folder)?;
        if bootstrap.is_none() {
            for (participant, ..) in PARTICIPANTS {
                let txids = report::in_doubt(&database(&folder, participant))?;
                if !txids.is_empty() {
                    return Ok(Err(Doubts { participant, txids }));
                }
            }
        }
        let keys = keys(&folder)?;
        let cluster_at = match bootstrap {
            Some(bootstrap) => Some((bootstrap.to_string(), prefix(&folder)?)),
            None => None,
        };
        // Both kinds of broker are talked to by blocking calls.
        let (kafka, broker) = tokio::task::spawn_blocking(move || match cluster_at {
            Some((bootstrap, prefix)) => cluster(bootstrap, prefix).map(|kafka| (kafka, None)),
            None => embedded().map(|(kafka, broker)| (kafka, Some(broker))),
        })
        .await??;
        let upstream = upstream(&kafka.prefix);
        Ok(Ok(Self {
            rules: Arc::new(demo_rules()?.reading(&upstream)),
            is_embedded: broker.is_some(),
            kafka,
            folder,
            upstream,
            keys,
            _broker: broker,
            _lock: lock,
            temporary,
        }))
    }

    /// The participants, in the order of the surgery.
    pub fn participants(&self) -> Vec<Participant> {
        participants()
    }

    /// A participant's database file.
    pub fn database(&self, participant: &Participant) -> PathBuf {
        database(&self.folder, participant.as_str())
    }

    /// Puts patients, privileges and coverages into the databases, as the events name them. Inserts only what is missing.
    pub async fn seed(&self, events: &[Vec<u8>]) -> anyhow::Result<()> {
        let seeds = Seeds::of_demo()?;
        for participant in self.participants() {
            let resource =
                open_participant(&self.folder, &self.kafka.prefix, &self.keys.identity, participant.as_str()).await?;
            seeds.apply(&resource, &participant, &self.keys, events).await?;
        }
        Ok(())
    }

    /// What is about to happen.
    pub fn introduction(&self, events: usize) -> String {
        let broker = match self.is_embedded {
            true => "an embedded broker (librdkafka's mock cluster: no disk, no replication; it forgets everything at the end)".to_string(),
            false => format!("the cluster at {}, topics {}.*", self.kafka.bootstrap, self.kafka.prefix),
        };
        let kept = match self.temporary {
            Some(_) => "a temporary folder".to_string(),
            None => self.folder.display().to_string(),
        };
        format!("{events} event(s), three organisations' databases (SQLite, in {kept}), {broker}")
    }

    /// How to look at the topics by hand.
    pub fn kcat_lines(&self) -> String {
        let (broker, prefix, upstream) = (&self.kafka.bootstrap, &self.kafka.prefix, &self.upstream);
        let mut lines = format!("still up at {broker}; end with Ctrl-C. For example:\n");
        for topic in [Topic::Requests, Topic::Decisions, Topic::Outcomes].map(|topic| topic.name(prefix)) {
            lines.push_str(&format!("  kcat -b {broker} -t {topic} -C -e -f '%p/%o %k %s\\n'\n"));
        }
        for participant in self.participants() {
            let topic = Topic::Votes(participant).name(prefix);
            lines.push_str(&format!("  kcat -b {broker} -t {topic} -C -e -f '%p/%o %k %s\\n'\n"));
        }
        lines.push_str(&format!(
            "  kcat -b {broker} -t {upstream} -P -l EVENTS.ndjson      # feed more, one Bundle a line\n\
             The databases know the patients, surgeons and coverages of this run's events only: what is appended about \
             others, all three refuse."
        ));
        lines
    }
}

/// Opens a participant's database, with its tables.
pub async fn open_participant(
    folder: &Path,
    deployment: &Deployment,
    identity: &IdentityKey,
    participant: &str,
) -> anyhow::Result<OpenedResource> {
    let (config, schema) = participant_config(folder, participant)?;
    let mut opening = config.opening(deployment, Some(identity.fingerprint()), false)?;
    opening.schema = Some(schema.to_string());
    OpenedResource::open(&config, opening).await.with_context(|| format!("the database of {participant}"))
}

/// One demo a folder: two would work on each other's ledgers, each with a broker of its own, and lose events. The lock goes
/// with the process, however it ends. The children of --crash are the demo's own and take none.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let file = folder.join("lock");
    let opened = File::options().create(true).append(true).open(&file);
    let lock = opened.with_context(|| format!("{}: cannot be written", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "{}: another demo runs in this folder; wait until it has ended, or use another --data",
                folder.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{}: cannot be locked", file.display())),
    }
}

fn participant_config(folder: &Path, participant: &str) -> anyhow::Result<(ParticipantConfig, &'static str)> {
    let Some((name, toml, schema)) = PARTICIPANTS.iter().find(|(name, ..)| *name == participant) else {
        bail!("{participant} is no participant of the demo");
    };
    // Paths in it start at the folder, so each participant's file lies there.
    let mut config = ParticipantConfig::parse(toml, &folder.join(format!("{name}.toml")))?;
    if let Database::Sqlite(settings) = &mut config.database {
        settings.path = database(folder, name);
    }
    Ok((config, schema))
}

fn database(folder: &Path, participant: &str) -> PathBuf {
    folder.join(format!("{participant}.sqlite"))
}

/// The rules that come with the program.
pub fn demo_rules() -> anyhow::Result<Rules> {
    rules(RULES, "rules.toml")
}

fn rules(text: &str, name: &str) -> anyhow::Result<Rules> {
    Rules::parse(text).with_context(|| name.to_string())
}

/// The upstream topic of a demo.
fn upstream(prefix: &Deployment) -> String {
    format!("{prefix}.upstream")
}

/// The folder's keys; made at the first run.
pub fn keys(folder: &Path) -> anyhow::Result<Keys> {
    let has_databases = PARTICIPANTS.iter().any(|(participant, ..)| database(folder, participant).exists());
    if has_databases && !folder.join("identity.key").exists() {
        bail!(
            "{}: identity.key is missing and there are databases made with it: put it back, or use another folder",
            folder.display()
        );
    }
    let identity = kept(folder, "identity.key", || Ok(hex(&random::bytes::<32>()?)))?;
    let hash = kept(folder, "hash.key", || Ok(hex(&random::bytes::<32>()?)))?;
    Ok(Keys {
        identity: IdentityKey::new(identity.as_bytes()).context("identity.key")?,
        hash: HashKey::new("k1".parse().context("key id")?, hash.as_bytes()).context("hash.key")?,
    })
}

/// The topic prefix on a cluster; chosen at the first run.
fn prefix(folder: &Path) -> anyhow::Result<Deployment> {
    let prefix = kept(folder, "prefix", || Ok(format!("demo-{}", LogLetters::from_random(random::bytes()?))))?;
    prefix.parse().context("the file `prefix`")
}

/// A small file's text, written when it is missing.
fn kept(folder: &Path, name: &str, make: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<String> {
    let file = folder.join(name);
    if !file.exists() {
        // Two of these files are secrets.
        let mut created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .with_context(|| format!("{}: cannot be written", file.display()))?;
        writeln!(created, "{}", make()?).with_context(|| format!("{}: cannot be written", file.display()))?;
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("{}: cannot be read", file.display()))?;
    Ok(text.trim().to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn participants() -> Vec<Participant> {
    PARTICIPANTS.iter().map(|(name, ..)| name.parse().expect("a valid name")).collect()
}

fn embedded() -> anyhow::Result<(KafkaSettings, EmbeddedBroker)> {
    let broker = EmbeddedBroker::start()?;
    let kafka = broker.settings("suture".parse().context("prefix")?);
    broker.create_topics(&kafka, &participants())?;
    broker.create_topic(&upstream(&kafka.prefix), UPSTREAM_PARTITIONS)?;
    Ok((kafka, broker))
}

fn cluster(bootstrap: String, prefix: Deployment) -> anyhow::Result<KafkaSettings> {
    let kafka = KafkaSettings::new(bootstrap, prefix);
    crate::topics::create_for_demo(&kafka, &participants(), &upstream(&kafka.prefix), UPSTREAM_PARTITIONS)?;
    Ok(kafka)
}
