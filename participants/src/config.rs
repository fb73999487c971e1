//! A participant's TOML file.
//!
//! ```toml
//! name = "insurer"
//! mode = "xa"                          # xa: PostgreSQL, MariaDB, MySQL; reserve: these, and SQLite
//! schema_file = "../../schema/insurer.postgres.sql"   # beside this file; applied only when asked for
//! inquire_after_ms = 60000             # a branch in doubt for longer asks for its decision
//! sweep_after_ms = 30000               # xa: a branch that is over and still prepared after so long is rolled back
//!
//! [database]
//! kind = "postgres"
//! url_env = "SUTURE_INSURER_URL"       # or url, or url_file: a file that holds the URL
//! connections = 16                     # for prepares
//! decision_connections = 4             # for decisions, which never wait for prepares
//! cap = 100                            # most branches in doubt at once
//! lock_timeout_ms = 1000               # how long a step waits for a row
//! key_timeout_ms = 500                 # how long a prepare waits for a branch in doubt of the same business key
//! statement_timeout_ms = 5000
//! idle_timeout_ms = 60000              # the server ends a local transaction of ours that stalls for longer
//! lost_after_ms = 3000                 # how long a missing branch is looked for before it is called lost
//!
//! [ledger]                             # without it the ledger keeps its rows for good
//! purge_after_days = 400.0             # finished rows that are older go
//!
//! [operation.reserve_claim]            # see suture_participants_core::operations
//! [seed.seed_coverage]
//! ```
//!
//! ```toml
//! [database]
//! kind = "sqlite"
//! path = "/var/lib/suture/surgeon-log.sqlite"
//! ```
//!
//! Everything is checked when the file is read, before any connection: an error names the file, the key and the remedy.
//!
//! **`purge_after_days` must be longer than anything upstream may be replayed**: with its row a business key is forgotten, and the
//! same event, asked for again, takes effect again. Nothing else depends on it, for what was finished is told by the mark that
//! stays. A fraction of a day is for tests.
//!
//! Left out: TLS to the database; put a local proxy beside it, or use a socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use suture_contract::ids::{Deployment, Participant};
use suture_participants_core::gid::Owner;
use suture_participants_core::operations::{
    Misconfigured, Mode, Operation, OperationConfig, Seed, SeedConfig, compile_operations, compile_seeds,
};
use suture_participants_core::sql::Dialect;

use crate::resource::Opening;

/// What `suture participant` understands in the place of a name.
const WORDS: [&str; 2] = ["init", "check"];

/// A participant, checked and compiled.
#[derive(Debug, Clone)]
pub struct ParticipantConfig {
    /// Where it was read from.
    pub file: PathBuf,
    /// Its name; its topics and its group are named after it.
    pub name: Participant,
    /// How it keeps its promise.
    pub mode: Mode,
    /// Where its rows are.
    pub database: Database,
    /// When something is due that no message calls for.
    pub upkeep: UpkeepSettings,
    /// The script that creates its tables.
    pub schema_file: Option<PathBuf>,
    /// What may be prepared.
    pub operations: BTreeMap<String, Operation>,
    /// What may be seeded.
    pub seeds: BTreeMap<String, Seed>,
}

/// Where the rows are.
#[derive(Debug, Clone)]
#[expect(missing_docs)]
pub enum Database {
    Sqlite(SqliteSettings),
    Postgres(ServerSettings),
    Mariadb(ServerSettings),
}

impl Database {
    /// A database by its URL alone: `postgres://`, `mysql://`, or the path of a SQLite file. Everything else as it is where a
    /// configuration says nothing.
    pub fn of_url(url: &str) -> Result<Self, ConfigError> {
        let kind = match url.split_once("://") {
            Some(("postgres" | "postgresql", _)) => RawKind::Postgres,
            Some(("mysql" | "mariadb", _)) => RawKind::Mariadb,
            Some((scheme, _)) => {
                let text = "is no kind of database; write postgres://.., mysql://.. (MariaDB too), or the path of a SQLite \
                            file";
                return Err(problem(Path::new("--database"), &format!("{scheme}://"), text.to_string()));
            }
            None => RawKind::Sqlite,
        };
        let is_file = matches!(kind, RawKind::Sqlite);
        let raw = RawDatabase {
            kind,
            path: is_file.then(|| PathBuf::from(url)),
            busy_timeout_ms: None,
            url: (!is_file).then(|| url.to_string()),
            url_file: None,
            url_env: None,
            connections: None,
            decision_connections: None,
            cap: None,
            lock_timeout_ms: None,
            key_timeout_ms: None,
            statement_timeout_ms: None,
            lost_after_ms: None,
            idle_timeout_ms: None,
        };
        raw.check(Path::new("--database"), Mode::Reserve).map(|(database, _)| database)
    }

    /// How statements are written there.
    pub fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
            Self::Mariadb(_) => Dialect::Mariadb,
        }
    }

    /// Who the participant logs in as, if the URL says it.
    pub fn user(&self) -> Option<String> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(settings) => {
                settings.url.parse::<tokio_postgres::Config>().ok()?.get_user().map(str::to_string)
            }
            Self::Mariadb(settings) => mysql_async::Opts::from_url(&settings.url).ok()?.user().map(str::to_string),
        }
    }

    /// Its name on its server; a file has none.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(settings) => {
                let config = settings.url.parse::<tokio_postgres::Config>().ok()?;
                config.get_dbname().or(config.get_user()).map(str::to_string)
            }
            Self::Mariadb(settings) => mysql_async::Opts::from_url(&settings.url).ok()?.db_name().map(str::to_string),
        }
    }

    /// Where it is, without user and password: the file, or hosts, port and name.
    pub fn place(&self) -> String {
        match self {
            Self::Sqlite(settings) => settings.path.display().to_string(),
            Self::Postgres(settings) => match settings.url.parse::<tokio_postgres::Config>() {
                Ok(config) => {
                    let hosts = config.get_hosts().iter().map(|host| match host {
                        tokio_postgres::config::Host::Tcp(name) => name.clone(),
                        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
                    });
                    let hosts = hosts.collect::<Vec<_>>().join(",");
                    let ports = config.get_ports().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                    format!("{hosts}:{ports}/{}", config.get_dbname().unwrap_or_default())
                }
                Err(_) => "a URL that cannot be read".to_string(),
            },
            Self::Mariadb(settings) => match mysql_async::Opts::from_url(&settings.url) {
                Ok(opts) => {
                    format!("{}:{}/{}", opts.ip_or_hostname(), opts.tcp_port(), opts.db_name().unwrap_or_default())
                }
                Err(_) => "a URL that cannot be read".to_string(),
            },
        }
    }
}

/// When something is due that no message calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpkeepSettings {
    /// A branch that has been in doubt for longer asks for its decision, and again after each such time.
    pub inquire_after: Duration,
    /// A prepared branch that is over by its ledger row, and is found so for longer, is rolled back.
    pub sweep_after: Duration,
    /// Finished ledger rows that have not changed for longer are purged. `None`: never.
    pub purge_after: Option<Duration>,
}

impl Default for UpkeepSettings {
    fn default() -> Self {
        Self { inquire_after: Duration::from_secs(60), sweep_after: Duration::from_secs(30), purge_after: None }
    }
}

/// A SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteSettings {
    /// The file; created if it is missing and the tables are too.
    pub path: PathBuf,
    /// How long to wait for another process that writes.
    pub busy_timeout: Duration,
}

/// A database behind a server: PostgreSQL, MariaDB or MySQL.
#[derive(Clone)]
pub struct ServerSettings {
    /// Where it is, with its password.
    pub url: String,
    /// Connections for prepares.
    pub connections: usize,
    /// Connections for decisions.
    pub decision_connections: usize,
    /// Most branches in doubt at once.
    pub cap: usize,
    /// How long a step of a prepare waits for a lock.
    pub lock_timeout: Duration,
    /// How long a prepare waits for a branch in doubt of the same business key. Short: participants whose connections all
    /// wait so for each other's decisions come no further until then.
    pub key_timeout: Duration,
    /// How long a statement of a prepare may run.
    pub statement_timeout: Duration,
    /// The server ends a local transaction of ours that stalls for longer; nothing is prepared then. In whole seconds. (MySQL has
    /// no such setting.)
    pub idle_timeout: Duration,
    /// How long a missing branch is looked for before it is called lost.
    pub lost_after: Duration,
}

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {key}: {problem}")]
pub struct ConfigError {
    /// Which file.
    pub file: String,
    /// Which key; a line for what is no TOML.
    pub key: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl ParticipantConfig {
    /// Reads a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| problem(file, "file", format!("cannot be read ({}); check the path", error.kind())))?;
        Self::parse(&text, file)
    }

    /// Reads the text of a file. Relative paths in it start at the file's folder.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            problem(file, &format!("line {line}"), error.message().to_string())
        })?;
        let misconfigured = |Misconfigured { key, problem: text }: Misconfigured| problem(file, &key, text);
        let name = raw.name.parse().map_err(|error| problem(file, "name", format!("{error}")))?;
        if WORDS.contains(&raw.name.as_str()) {
            let text = format!("{} is a word of `suture participant`; choose another name", raw.name);
            return Err(problem(file, "name", text));
        }
        if raw.operation.is_empty() {
            return Err(problem(file, "operation", "at least one [operation.<name>] is needed".to_string()));
        }
        let (database, dialect) = raw.database.check(file, raw.mode)?;
        let usual = UpkeepSettings::default();
        let upkeep = UpkeepSettings {
            inquire_after: at_least_100_ms(file, "inquire_after_ms", raw.inquire_after_ms, usual.inquire_after)?,
            sweep_after: at_least_100_ms(file, "sweep_after_ms", raw.sweep_after_ms, usual.sweep_after)?,
            purge_after: check_purge(file, &raw.ledger, &database)?,
        };
        Ok(Self {
            file: file.to_path_buf(),
            name,
            mode: raw.mode,
            database,
            upkeep,
            schema_file: raw.schema_file.map(|path| beside(file, &path)),
            operations: compile_operations(&raw.operation, raw.mode, dialect).map_err(misconfigured)?,
            seeds: compile_seeds(&raw.seed, dialect).map_err(misconfigured)?,
        })
    }

    /// What a resource is opened with. `apply_schema` creates the business tables where they are missing.
    pub fn opening(
        &self,
        deployment: &Deployment,
        identity_fingerprint: Option<String>,
        apply_schema: bool,
    ) -> Result<Opening, ConfigError> {
        let schema = match (&self.schema_file, apply_schema) {
            (Some(file), true) => Some(std::fs::read_to_string(file).map_err(|error| {
                problem(file, "schema_file", format!("cannot be read ({}); check the path", error.kind()))
            })?),
            (None, _) | (_, false) => None,
        };
        Ok(Opening {
            mode: self.mode,
            owner: Owner { deployment: deployment.clone(), participant: self.name.clone() },
            identity_fingerprint,
            schema,
            operations: self.operations.clone(),
            seeds: self.seeds.clone(),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: String,
    mode: Mode,
    database: RawDatabase,
    inquire_after_ms: Option<u64>,
    sweep_after_ms: Option<u64>,
    #[serde(default)]
    ledger: RawLedger,
    schema_file: Option<PathBuf>,
    #[serde(default)]
    operation: BTreeMap<String, OperationConfig>,
    #[serde(default)]
    seed: BTreeMap<String, SeedConfig>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLedger {
    purge_after_days: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDatabase {
    kind: RawKind,
    path: Option<PathBuf>,
    busy_timeout_ms: Option<u64>,
    url: Option<String>,
    url_file: Option<PathBuf>,
    url_env: Option<String>,
    connections: Option<usize>,
    decision_connections: Option<usize>,
    cap: Option<usize>,
    lock_timeout_ms: Option<u64>,
    key_timeout_ms: Option<u64>,
    statement_timeout_ms: Option<u64>,
    idle_timeout_ms: Option<u64>,
    lost_after_ms: Option<u64>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum RawKind {
    Sqlite,
    Postgres,
    /// MySQL too.
    Mariadb,
}

impl ServerSettings {
    /// How long one question may take, with everything that it waits for.
    pub fn patience(&self) -> Duration {
        (self.lock_timeout + self.statement_timeout + self.lost_after) * 2 + Duration::from_secs(10)
    }
}

impl RawDatabase {
    fn check(self, file: &Path, mode: Mode) -> Result<(Database, Dialect), ConfigError> {
        let wrong = |key: &str, text: &str| Err(problem(file, &format!("database.{key}"), text.to_string()));
        match (self.kind, mode) {
            (RawKind::Sqlite, Mode::Reserve) => {
                if let Some(key) = self.server_key() {
                    return wrong(key, "belongs to the kinds postgres and mariadb; remove it");
                }
                let Some(path) = &self.path else { return wrong("path", "is missing; name the SQLite file") };
                let busy_timeout = Duration::from_millis(self.busy_timeout_ms.unwrap_or(5_000));
                let settings = SqliteSettings { path: beside(file, path), busy_timeout };
                Ok((Database::Sqlite(settings), Dialect::Sqlite))
            }
            (RawKind::Postgres | RawKind::Mariadb, _) if self.path.is_some() || self.busy_timeout_ms.is_some() => {
                wrong("path", "path and busy_timeout_ms belong to kind sqlite; remove them")
            }
            (RawKind::Postgres, Mode::Xa | Mode::Reserve) => {
                let settings = self.check_server(file)?;
                if settings.url.parse::<tokio_postgres::Config>().is_err() {
                    return wrong("url", "is no PostgreSQL URL; write postgres://user@host:port/database");
                }
                Ok((Database::Postgres(settings), Dialect::Postgres))
            }
            (RawKind::Mariadb, Mode::Xa | Mode::Reserve) => {
                let settings = self.check_server(file)?;
                let names_database = mysql_async::Opts::from_url(&settings.url).is_ok_and(|o| o.db_name().is_some());
                if !names_database {
                    return wrong("url", "is no MariaDB URL; write mysql://user@host:port/database");
                }
                for (key, timeout) in
                    [("lock_timeout_ms", settings.lock_timeout), ("key_timeout_ms", settings.key_timeout)]
                {
                    if timeout.subsec_millis() != 0 {
                        return wrong(key, "MariaDB waits for locks in whole seconds; write a multiple of 1000");
                    }
                }
                Ok((Database::Mariadb(settings), Dialect::Mariadb))
            }
            (RawKind::Sqlite, Mode::Xa) => wrong("kind", "SQLite cannot prepare transactions; set mode = \"reserve\""),
        }
    }

    fn check_server(&self, file: &Path) -> Result<ServerSettings, ConfigError> {
        let wrong = |key: &str, text: &str| Err(problem(file, &format!("database.{key}"), text.to_string()));
        let url = match (&self.url, &self.url_file, &self.url_env) {
            (Some(url), None, None) => url.clone(),
            (None, Some(path), None) => match std::fs::read_to_string(beside(file, path)) {
                Ok(url) => url.trim().to_string(),
                Err(error) => return wrong("url_file", &format!("cannot be read ({}); check the path", error.kind())),
            },
            (None, None, Some(name)) => match std::env::var(name) {
                Ok(url) => url,
                Err(_) => return wrong("url_env", &format!("the environment has no {name}; set it to the URL")),
            },
            _ => return wrong("url", "give one of url, url_file and url_env"),
        };
        // MariaDB counts in whole seconds.
        let key_timeout_ms = if matches!(self.kind, RawKind::Mariadb) { 1_000 } else { 500 };
        let settings = ServerSettings {
            url,
            connections: self.connections.unwrap_or(16),
            decision_connections: self.decision_connections.unwrap_or(4),
            cap: self.cap.unwrap_or(100),
            lock_timeout: Duration::from_millis(self.lock_timeout_ms.unwrap_or(1_000)),
            key_timeout: Duration::from_millis(self.key_timeout_ms.unwrap_or(key_timeout_ms)),
            statement_timeout: Duration::from_millis(self.statement_timeout_ms.unwrap_or(5_000)),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms.unwrap_or(60_000)),
            lost_after: Duration::from_millis(self.lost_after_ms.unwrap_or(3_000)),
        };
        let numbers = [
            ("connections", settings.connections),
            ("decision_connections", settings.decision_connections),
            ("cap", settings.cap),
        ];
        for (key, number) in numbers {
            if number == 0 || number > 10_000 {
                return wrong(key, "must be from 1 to 10000");
            }
        }
        for (key, duration) in [
            ("lock_timeout_ms", settings.lock_timeout),
            ("key_timeout_ms", settings.key_timeout),
            ("statement_timeout_ms", settings.statement_timeout),
        ] {
            // To PostgreSQL 0 means endless, and it takes no more than 31 bits.
            if duration.is_zero() || duration > Duration::from_secs(3_600) {
                return wrong(key, "must be from 1 to 3600000");
            }
        }
        let idle_timeout = settings.idle_timeout;
        if idle_timeout.is_zero() || idle_timeout.subsec_millis() != 0 || idle_timeout > Duration::from_secs(3_600) {
            return wrong("idle_timeout_ms", "must be a multiple of 1000, at most 3600000");
        }
        Ok(settings)
    }

    fn server_key(&self) -> Option<&'static str> {
        let given = [
            ("url", self.url.is_some()),
            ("url_file", self.url_file.is_some()),
            ("url_env", self.url_env.is_some()),
            ("connections", self.connections.is_some()),
            ("decision_connections", self.decision_connections.is_some()),
            ("cap", self.cap.is_some()),
            ("lock_timeout_ms", self.lock_timeout_ms.is_some()),
            ("key_timeout_ms", self.key_timeout_ms.is_some()),
            ("statement_timeout_ms", self.statement_timeout_ms.is_some()),
            ("idle_timeout_ms", self.idle_timeout_ms.is_some()),
            ("lost_after_ms", self.lost_after_ms.is_some()),
        ];
        given.into_iter().find_map(|(key, given)| given.then_some(key))
    }
}

/// Shows everything but the URL, which may hold a password.
impl std::fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSettings")
            .field("connections", &self.connections)
            .field("decision_connections", &self.decision_connections)
            .field("cap", &self.cap)
            .field("lock_timeout", &self.lock_timeout)
            .field("key_timeout", &self.key_timeout)
            .field("statement_timeout", &self.statement_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("lost_after", &self.lost_after)
            .finish_non_exhaustive()
    }
}

/// A time in which something else must be able to come first.
fn at_least_100_ms(file: &Path, key: &str, given_ms: Option<u64>, usual: Duration) -> Result<Duration, ConfigError> {
    match given_ms {
        None => Ok(usual),
        Some(ms @ 100..=86_400_000) => Ok(Duration::from_millis(ms)),
        Some(_) => Err(problem(file, key, "must be from 100 to 86400000".to_string())),
    }
}

/// A local transaction that was opened before its row was purged must be long over.
fn check_purge(file: &Path, ledger: &RawLedger, database: &Database) -> Result<Option<Duration>, ConfigError> {
    const LONGEST_DAYS: f64 = 36_500.0;
    const TIMES: u32 = 10;
    let wrong = |text: String| Err(problem(file, "ledger.purge_after_days", text));
    let Some(days) = ledger.purge_after_days else { return Ok(None) };
    if !(days > 0.0 && days <= LONGEST_DAYS) {
        return wrong(format!("must be more than 0 and at most {LONGEST_DAYS}; to keep all rows remove it"));
    }
    let purge_after = Duration::from_secs_f64(days * 86_400.0);
    let idle_timeout = match database {
        Database::Sqlite(_) => Duration::ZERO,
        Database::Postgres(settings) | Database::Mariadb(settings) => settings.idle_timeout,
    };
    if purge_after < TIMES * idle_timeout {
        return wrong(format!("must be at least {TIMES} times as long as database.idle_timeout_ms"));
    }
    Ok(Some(purge_after))
}

fn beside(file: &Path, path: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(path)
}

fn problem(file: &Path, key: &str, problem: String) -> ConfigError {
    ConfigError { file: file.display().to_string(), key: key.to_string(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATION: &str = "[[operation.o.reserve]]\nsql = \"select 1\"\nrows = 1\n[[operation.o.cancel]]\nsql = \"delete from t where txid = :txid\"\nrows = \"any\"\n[operation.o]\nconfirm = []\n";

    fn parsed(head: &str) -> Result<ParticipantConfig, ConfigError> {
        ParticipantConfig::parse(&format!("{head}\n{OPERATION}"), Path::new("/etc/suture/p.toml"))
    }

    #[test]
    fn a_good_file_is_read() {
        let config = parsed("name = \"p\"\nmode = \"reserve\"\nschema_file = \"p.sql\"\n[database]\nkind = \"sqlite\"\npath = \"p.sqlite\"").unwrap();
        assert_eq!(config.schema_file.as_deref(), Some(Path::new("/etc/suture/p.sql")));
        let Database::Sqlite(settings) = config.database else { panic!("another kind") };
        assert_eq!(settings.path, Path::new("/etc/suture/p.sqlite"));
        assert!(config.operations["o"].confirm.is_empty());
    }

    #[test]
    fn a_bad_file_is_refused_with_its_key() {
        let sqlite = "[database]\nkind = \"sqlite\"\npath = \"x\"";
        let cases = [
            (format!("name = \"P\"\nmode = \"reserve\"\n{sqlite}"), "/etc/suture/p.toml: name: "),
            (format!("name = \"check\"\nmode = \"reserve\"\n{sqlite}"), "/etc/suture/p.toml: name: check is a word"),
            (format!("name = \"p\"\nmode = \"xa\"\n{sqlite}"), "/etc/suture/p.toml: database.kind: SQLite cannot"),
            (format!("name = \"p\"\nmode = \"reserve\"\n{sqlite}\ncap = 1"), "/etc/suture/p.toml: database.cap: belongs"),
            (format!("name = \"p\"\nmode = \"reserve\"\ninquire_after_ms = 0\n{sqlite}"), "/etc/suture/p.toml: inquire_after_ms: must be"),
            (format!("name = \"p\"\nmode = \"reserve\"\n{sqlite}\n[ledger]\npurge_after_days = 0.0"), "/etc/suture/p.toml: ledger.purge_after_days: must be more than 0"),
            ("name = \"p\"\nmode = \"xa\"\n[database]\nkind = \"postgres\"\nurl = \"postgres://x\"\n[ledger]\npurge_after_days = 0.001".to_string(), "/etc/suture/p.toml: ledger.purge_after_days: must be at least 10 times"),
            ("name = \"p\"\nmode = \"xa\"\n[database]\nkind = \"postgres\"\nurl = \"postgres://x\"\nidle_timeout_ms = 1500".to_string(), "/etc/suture/p.toml: database.idle_timeout_ms: must be"),
            (format!("name = \"p\"\nmode = \"reserve\"\ntypo = 1\n{sqlite}"), "/etc/suture/p.toml: line 3: unknown field"),
            ("name = \"p\"\nmode = \"reserve\"\n[database]\nkind = \"sqlite\"".to_string(), "/etc/suture/p.toml: database.path: is missing"),
            ("name = \"p\"\nmode = \"xa\"\n[database]\nkind = \"postgres\"".to_string(), "/etc/suture/p.toml: database.url: give one of"),
            ("name = \"p\"\nmode = \"xa\"\n[database]\nkind = \"postgres\"\nurl_env = \"SUTURE_NOT_SET_ANYWHERE\"".to_string(), "/etc/suture/p.toml: database.url_env: the environment has no"),
            ("name = \"p\"\nmode = \"xa\"\n[database]\nkind = \"postgres\"\nurl = \"mysql://x\"".to_string(), "/etc/suture/p.toml: database.url: is no"),
            ("name = \"p\"\nmode = \"xa\"\n[database]\nkind = \"postgres\"\nurl = \"postgres://x\"\nlock_timeout_ms = 0".to_string(), "/etc/suture/p.toml: database.lock_timeout_ms: must be"),
        ];
        for (head, expected) in cases {
            let problem = parsed(&head).unwrap_err().to_string();
            assert!(problem.starts_with(expected), "{problem}");
        }
    }

    #[test]
    fn a_url_tells_the_kind_of_database() {
        assert!(matches!(Database::of_url("postgres://u@h/d"), Ok(Database::Postgres(_))));
        assert!(matches!(Database::of_url("mysql://u@h/d"), Ok(Database::Mariadb(_))));
        assert!(matches!(Database::of_url("/var/lib/p.sqlite"), Ok(Database::Sqlite(_))));
        let refused = Database::of_url("xx://u:canary@h/d").unwrap_err().to_string();
        let expected = "--database: xx://: is no kind of database; write postgres://.., mysql://..";
        assert!(refused.starts_with(expected) && !refused.contains("canary"), "{refused}");
    }

    #[test]
    fn a_password_is_not_shown() {
        let settings = ServerSettings {
            url: "postgres://u:canary@h/d".to_string(),
            connections: 1,
            decision_connections: 1,
            cap: 1,
            lock_timeout: Duration::from_secs(1),
            key_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            lost_after: Duration::from_secs(1),
        };
        assert!(!format!("{settings:?}").contains("canary"));
    }
}
