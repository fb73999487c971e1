//! What a database must be like, so that an answer of it is worth something. One list for each kind: opening refuses at the
//! first that is not met, `suture doctor` shows them all.
//!
//! | need | PostgreSQL | MariaDB, MySQL | SQLite |
//! |---|---|---|---|
//! | a version without known bugs in what is relied on (mode xa) | 13 and current minors | 10.6 and current minors; 8.0.29 | 3.51.3 |
//! | what is answered survives a power loss | `fsync`, `full_page_writes` | `innodb_flush_log_at_trx_commit`, `sync_binlog`, `innodb_doublewrite` | WAL; `synchronous` of each session |
//! | room for branches in doubt (mode xa) | `max_prepared_transactions` | `max_connections` | |
//! | a primary, and one that can prepare | not in recovery | `read_only`, no Galera | |
//! | branches outlive their session, and can be seen (mode xa) | the role that prepared them | `xa_detach_on_prepare`, `XA RECOVER` | |
//! | a rollback takes everything back | | InnoDB for every table | |
//! | a step's lock outlives its prepare (mode xa) | | no `lock in share mode`; `for update` is a warning | |
//! | a branch goes in one piece | | `max_allowed_packet`, `binlog_format` | |
//!
//! What can be set by a session is set by it and read back (`synchronous_commit`, isolation, timeouts of locks, statements and idle
//! transactions, `sql_mode`), and stands in no list. That goes for what ends a stalled local transaction too; MySQL has no such setting.
//!
//! Pure: what the database says comes in as names and texts.

use std::collections::BTreeMap;

use suture_participants_core::gid::Owner;
use suture_participants_core::operations::{Mode, Step};
use suture_participants_core::touched::{ReadLock, read_lock};

use crate::config::ServerSettings;
use crate::resource::OpenError;

/// The longest script of one branch needs somewhat less.
const LEAST_PACKET: u64 = 16 << 20;

/// The first minor of each major version whose recovery of prepared transactions is sound; later majors are.
const POSTGRES_MINORS: [(u32, u32); 5] = [(13, 19), (14, 16), (15, 11), (16, 7), (17, 3)];

/// The first of each series in which nothing runs outside of a branch that a deadlock has ended (MDEV-37141). Series between them
/// end without it.
const MARIADB_MINORS: [(u16, u16, u16); 4] = [(10, 6, 23), (10, 11, 14), (11, 4, 8), (11, 8, 3)];

/// Since when prepared branches survive their session.
const OLDEST_MARIADB: (u16, u16, u16) = (10, 5, 2);
const OLDEST_MYSQL: (u16, u16, u16) = (8, 0, 29);

/// The first version without the WAL-reset race.
const OLDEST_SQLITE: (u16, u16, u16) = (3, 51, 3);

/// A thing that matters, and how it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What.
    pub setting: &'static str,
    /// How it is.
    pub value: String,
    /// Whether that will do.
    pub verdict: Verdict,
}

/// Whether a need is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Met,
    /// Safe enough to begin with; a person should know.
    Advice {
        /// What may happen.
        why: String,
        /// What to do.
        mend: String,
    },
    /// Refused.
    Unmet {
        /// What may happen.
        why: String,
        /// What to do.
        mend: String,
    },
}

/// What the database said about itself.
pub(crate) type Facts = BTreeMap<String, String>;

/// Refuses at the first that is not met.
pub(crate) fn refuse(needs: Vec<Need>) -> Result<(), OpenError> {
    for Need { setting, value, verdict } in needs {
        match verdict {
            Verdict::Met => {}
            Verdict::Advice { why, mend } => tracing::warn!(setting, value, why, mend, "the database could be safer"),
            Verdict::Unmet { why, mend } => {
                return Err(OpenError::Need { setting, value, remedy: format!("{mend}: {why}") });
            }
        }
    }
    Ok(())
}

impl Need {
    fn of(setting: &'static str, value: impl Into<String>, is_met: bool, mend: &str, why: &str) -> Self {
        let verdict = match is_met {
            true => Verdict::Met,
            false => Verdict::Unmet { why: why.to_string(), mend: mend.to_string() },
        };
        Self { setting, value: value.into(), verdict }
    }
}

// ---- PostgreSQL ------------------------------------------------------------------------------------------------------

/// Asks for the facts: names and texts.
pub(crate) fn postgres_facts(owner: &Owner) -> String {
    // Both names have closed alphabets, without quotes.
    let mark = format!("/{}/{}/", owner.deployment, owner.participant);
    format!(
        "select name, setting from pg_settings where name in
             ('server_version_num', 'server_version', 'max_prepared_transactions', 'fsync', 'full_page_writes')
         union all select 'in_recovery', pg_is_in_recovery()::text
         union all select 'of_another_role', count(*)::text from pg_prepared_xacts
             where database = current_database() and position('{mark}' in gid) > 0
               and owner is distinct from current_user
               and not (select rolsuper from pg_roles where rolname = current_user)"
    )
}

/// What PostgreSQL must be like.
pub(crate) fn of_postgres(facts: &Facts, mode: Mode, settings: &ServerSettings) -> Vec<Need> {
    let text = |name: &str| facts.get(name).cloned().unwrap_or_default();
    let number = |name: &str| text(name).parse::<u64>().unwrap_or(0);
    let version = u32::try_from(number("server_version_num")).unwrap_or(0);
    let minor = POSTGRES_MINORS.into_iter().find(|(major, _)| *major == version / 10_000);
    let is_current = mode == Mode::Reserve || minor.is_none_or(|(_, minor)| version % 10_000 >= minor);
    let slots = 2 * settings.cap;
    let power = "a prepared branch must survive a power loss";
    let mut needs = vec![match minor {
        Some((major, minor)) if !is_current => Need::of(
            "server_version",
            text("server_version"),
            false,
            &format!("update it to {major}.{minor} or later"),
            "older minors may lose or revive prepared transactions when they recover",
        ),
        _ => Need::of(
            "server_version",
            text("server_version"),
            version >= 130_000,
            "use PostgreSQL 13 or later, a current minor",
            "older ones lack what is used here",
        ),
    }];
    if mode == Mode::Xa {
        needs.push(Need::of(
            "max_prepared_transactions",
            text("max_prepared_transactions"),
            number("max_prepared_transactions") >= slots as u64,
            &format!("set it to {slots} or more (twice database.cap) and restart PostgreSQL, or lower the cap"),
            "without a slot a branch cannot be prepared",
        ));
    }
    for setting in ["fsync", "full_page_writes"] {
        needs.push(Need::of(setting, text(setting), text(setting) == "on", "set it to on", power));
    }
    needs.push(Need::of(
        "pg_is_in_recovery",
        text("in_recovery"),
        text("in_recovery") == "false",
        "connect to the primary",
        "a standby takes no changes",
    ));
    let other = number("of_another_role");
    needs.push(Need::of(
        "the owner of branches in doubt",
        if other == 0 { "this role" } else { "another role" },
        other == 0,
        "connect as the role that prepared them",
        "no other may finish them",
    ));
    needs
}

// ---- MariaDB and MySQL -----------------------------------------------------------------------------------------------

/// What kind of server it is.
pub(crate) const MARIADB_VERSION: &str = "select version()";

/// A table whose changes a rollback does not take back. MariaDB opens each table for that; of one that somebody alters it tells no
/// engine then, and nobody waits for him.
pub(crate) const OTHER_ENGINES: &str =
    "/*M!100500 set statement lock_wait_timeout = 0 for */ select min(table_name) from information_schema.tables
    where table_schema = database() and table_type = 'BASE TABLE' and engine <> 'InnoDB'";

/// Asks for the facts: names and texts.
pub(crate) fn mariadb_facts(version: &str) -> &'static str {
    match is_mariadb(version) {
        true => "select lower(variable_name), variable_value from information_schema.global_variables",
        false => "select lower(variable_name), variable_value from performance_schema.global_variables",
    }
}

/// MariaDB, or MySQL.
pub(crate) fn is_mariadb(version: &str) -> bool {
    version.contains("MariaDB")
}

/// What MariaDB or MySQL must be like.
pub(crate) fn of_mariadb(version: &str, facts: &Facts, mode: Mode, settings: &ServerSettings) -> Vec<Need> {
    let is_mariadb = is_mariadb(version);
    let value = |name: &str| facts.get(name).cloned().unwrap_or_default();
    let mut needs = vec![mariadb_version(version, mode)];
    let has_binlog = value("log_bin") == "ON";
    let wanted: [(&'static str, bool, &str, &str); 6] = [
        ("innodb_flush_log_at_trx_commit", true, "1", "a vote must survive a power loss"),
        ("sync_binlog", has_binlog, "1", "with a binary log, or turn that off: else both disagree after a power loss"),
        ("read_only", true, "OFF", "and connect to the primary"),
        ("wsrep_on", is_mariadb, "OFF", "Galera cannot prepare transactions"),
        ("xa_detach_on_prepare", !is_mariadb, "ON", "a branch must outlive its session"),
        ("innodb_doublewrite", true, "ON", "a page that is torn by a power loss takes branches with it"),
    ];
    for (setting, matters, must, why) in wanted {
        let is = value(setting);
        // A server that has no such setting has no such danger.
        if matters && !is.is_empty() {
            let is_met = is == must || (setting == "innodb_doublewrite" && is == "DETECT_AND_RECOVER");
            needs.push(Need::of(setting, is, is_met, &format!("set it to {must}"), why));
        }
    }
    if has_binlog {
        let format = value("binlog_format");
        let why = "statements of READ COMMITTED cannot be logged as such";
        let is_met = format != "STATEMENT";
        needs.push(Need::of("binlog_format", format, is_met, "set it to MIXED or ROW", why));
    }
    let packet = value("max_allowed_packet");
    let is_met = packet.parse::<u64>().unwrap_or(0) >= LEAST_PACKET;
    let mend = format!("set it to {LEAST_PACKET} or more");
    needs.push(Need::of("max_allowed_packet", packet, is_met, &mend, "a branch goes in one piece"));
    if mode == Mode::Xa {
        let most = value("max_connections");
        let wanted = settings.cap + settings.connections + settings.decision_connections + 1;
        let is_met = most.parse::<usize>().unwrap_or(0) >= wanted;
        let mend = format!("set it to {wanted} or more, or lower database.cap");
        needs.push(Need::of("max_connections", most, is_met, &mend, "each branch in doubt keeps one for a moment"));
    }
    needs
}

fn mariadb_version(version: &str, mode: Mode) -> Need {
    let is_mariadb = is_mariadb(version);
    let (oldest, name) = if is_mariadb { (OLDEST_MARIADB, "MariaDB") } else { (OLDEST_MYSQL, "MySQL") };
    let is = numbers(version);
    if is < oldest {
        let mend = format!("use {name} {}.{}.{} or later, a current minor", oldest.0, oldest.1, oldest.2);
        return Need::of("version", version, false, &mend, "a prepared branch must outlive its session");
    }
    // The first of its series, or of the next one that has any.
    let first = MARIADB_MINORS.into_iter().find(|(major, minor, _)| (*major, *minor) >= (is.0, is.1));
    let is_current = !is_mariadb || mode == Mode::Reserve || first.is_none_or(|first| is >= first);
    let mend = first.map(|(major, minor, patch)| format!("update it to {major}.{minor}.{patch} or later"));
    let why = "older ones go on outside of a branch that a deadlock has ended (MDEV-37141)";
    Need::of("version", version, is_current, &mend.unwrap_or_default(), why)
}

/// Whether the account may see its own branches.
pub(crate) fn of_listing(refused: Option<&str>) -> Need {
    let value = refused.map_or("allowed".to_string(), |code| format!("refused ({code})"));
    let mend = "grant XA_RECOVER_ADMIN to the participant's account";
    Need::of("XA RECOVER", value, refused.is_none(), mend, "its own branches must be seen")
}

/// Whether there is a table of another engine.
pub(crate) fn of_engines(table: Option<&str>) -> Need {
    let value = table.map_or("InnoDB".to_string(), |table| format!("another one than InnoDB ({table})"));
    let mend = format!("alter table {} engine = InnoDB", table.unwrap_or_default());
    Need::of("the engine of a table", value, table.is_none(), &mend, "other engines ignore a rollback")
}

/// Locks that do not last until the decision (mode xa): a share lock goes with the prepare, any other with a restart. What a vote
/// depends on must be written there.
pub(crate) fn of_read_locks<'a>(mode: Mode, steps: impl Iterator<Item = &'a Step>) -> Vec<Need> {
    if mode == Mode::Reserve {
        return Vec::new();
    }
    let mend = "write what the vote depends on (update a column of the row), or use mode reserve".to_string();
    let need = |step: &Step| {
        let place = &step.place;
        let (value, verdict) = match read_lock(&step.sql)? {
            ReadLock::Shared => {
                let why = "a share lock is gone as soon as the branch is prepared".to_string();
                (format!("a share lock in {place}"), Verdict::Unmet { why, mend: mend.clone() })
            }
            ReadLock::Exclusive => {
                let why = "a lock of rows that are only read is gone after a restart of the server".to_string();
                (format!("for update in {place}"), Verdict::Advice { why, mend: mend.clone() })
            }
        };
        Some(Need { setting: "a lock that lasts", value, verdict })
    };
    steps.filter_map(need).collect()
}

// ---- SQLite ----------------------------------------------------------------------------------------------------------

/// What the library must be like.
pub(crate) fn of_sqlite(version: &str) -> Need {
    let (major, minor, patch) = OLDEST_SQLITE;
    let mend = format!("build with one from {major}.{minor}.{patch} on");
    let why = "older ones may lose commits when two processes share a write-ahead log";
    Need::of("SQLite's version", version, numbers(version) >= OLDEST_SQLITE, &mend, why)
}

/// What stays in a file when nobody has it open.
pub(crate) fn of_sqlite_file(journal_mode: &str) -> Need {
    let mend = "put the file on a local disk that can hold a write-ahead log, and start the participant once";
    let why = "without one readers and the writer block each other";
    Need::of("journal_mode", journal_mode, journal_mode == "wal", mend, why)
}

/// The numbers that a version begins with.
fn numbers(version: &str) -> (u16, u16, u16) {
    let digits = version.split(|c: char| !c.is_ascii_digit()).take(3).map(|part| part.parse().unwrap_or(0));
    let digits: Vec<u16> = digits.collect();
    let at = |index: usize| digits.get(index).copied().unwrap_or(0);
    (at(0), at(1), at(2))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings() -> ServerSettings {
        ServerSettings {
            url: String::new(),
            connections: 16,
            decision_connections: 4,
            cap: 100,
            lock_timeout: Duration::ZERO,
            key_timeout: Duration::ZERO,
            statement_timeout: Duration::ZERO,
            lost_after: Duration::ZERO,
            idle_timeout: Duration::ZERO,
        }
    }

    fn facts(texts: &[(&str, &str)]) -> Facts {
        texts.iter().map(|(name, text)| ((*name).to_string(), (*text).to_string())).collect()
    }

    fn unmet(needs: Vec<Need>) -> Vec<&'static str> {
        let is_unmet = |need: &Need| matches!(need.verdict, Verdict::Unmet { .. });
        needs.into_iter().filter(is_unmet).map(|need| need.setting).collect()
    }

    const POSTGRES: [(&str, &str); 7] = [
        ("server_version_num", "150018"),
        ("server_version", "15.18"),
        ("max_prepared_transactions", "200"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("in_recovery", "false"),
        ("of_another_role", "0"),
    ];

    #[test]
    fn postgres_is_refused_for_what_it_says() {
        let judged = |change: (&'static str, &'static str), mode| {
            let mut facts = facts(&POSTGRES);
            facts.insert(change.0.to_string(), change.1.to_string());
            unmet(of_postgres(&facts, mode, &settings()))
        };
        assert_eq!(judged(("fsync", "on"), Mode::Xa), [""; 0]);
        let cases = [
            (("server_version_num", "120022"), "server_version"),
            (("server_version_num", "150010"), "server_version"),
            (("server_version_num", "170002"), "server_version"),
            (("max_prepared_transactions", "199"), "max_prepared_transactions"),
            (("fsync", "off"), "fsync"),
            (("full_page_writes", "off"), "full_page_writes"),
            (("in_recovery", "true"), "pg_is_in_recovery"),
            (("of_another_role", "1"), "the owner of branches in doubt"),
        ];
        for (change, setting) in cases {
            assert_eq!(judged(change, Mode::Xa), [setting], "{change:?}");
        }
        for version in ["150011", "180000", "190000"] {
            assert_eq!(judged(("server_version_num", version), Mode::Xa), [""; 0], "{version}");
        }
        assert_eq!(judged(("server_version_num", "150010"), Mode::Reserve), [""; 0], "nothing is prepared");
        assert_eq!(judged(("max_prepared_transactions", "0"), Mode::Reserve), [""; 0]);
    }

    const MARIADB: [(&str, &str); 8] = [
        ("innodb_flush_log_at_trx_commit", "1"),
        ("log_bin", "OFF"),
        ("sync_binlog", "0"),
        ("read_only", "OFF"),
        ("wsrep_on", "OFF"),
        ("innodb_doublewrite", "ON"),
        ("max_allowed_packet", "67108864"),
        ("max_connections", "151"),
    ];

    #[test]
    fn mariadb_is_refused_for_what_it_says() {
        let judged = |changes: &[(&'static str, &'static str)]| {
            let mut all = facts(&MARIADB);
            all.extend(facts(changes));
            unmet(of_mariadb("10.11.19-MariaDB", &all, Mode::Xa, &settings()))
        };
        assert_eq!(judged(&[]), [""; 0]);
        let cases: [(&[(&str, &str)], &str); 8] = [
            (&[("innodb_flush_log_at_trx_commit", "2")], "innodb_flush_log_at_trx_commit"),
            (&[("log_bin", "ON")], "sync_binlog"),
            (&[("log_bin", "ON"), ("sync_binlog", "1"), ("binlog_format", "STATEMENT")], "binlog_format"),
            (&[("read_only", "ON")], "read_only"),
            (&[("wsrep_on", "ON")], "wsrep_on"),
            (&[("innodb_doublewrite", "OFF")], "innodb_doublewrite"),
            (&[("max_allowed_packet", "1048576")], "max_allowed_packet"),
            (&[("max_connections", "120")], "max_connections"),
        ];
        for (changes, setting) in cases {
            assert_eq!(judged(changes), [setting], "{changes:?}");
        }
    }

    #[test]
    fn mysql_is_refused_for_what_it_says() {
        let judged = |detaches: &str, mode| {
            let mut all = facts(&MARIADB);
            all.insert("xa_detach_on_prepare".to_string(), detaches.to_string());
            unmet(of_mariadb("9.7.4", &all, mode, &settings()))
        };
        assert_eq!(judged("ON", Mode::Xa), [""; 0]);
        assert_eq!(judged("OFF", Mode::Xa), ["xa_detach_on_prepare"]);
        assert_eq!(of_listing(None).verdict, Verdict::Met);
        assert_eq!(unmet(vec![of_listing(Some("1401"))]), ["XA RECOVER"]);
    }

    #[test]
    fn a_version_with_a_known_bug_is_refused_where_the_bug_matters() {
        let is_met = |version: &str, mode| mariadb_version(version, mode).verdict == Verdict::Met;
        for (version, xa) in [
            ("10.5.1-MariaDB", false),
            ("10.5.29-MariaDB", false),
            ("10.6.22-MariaDB", false),
            ("10.6.23-MariaDB", true),
            ("10.11.13-MariaDB", false),
            ("10.11.19-MariaDB-0+deb12u1", true),
            ("11.0.6-MariaDB", false),
            ("11.8.3-MariaDB", true),
            ("12.0.2-MariaDB", true),
            ("8.0.28", false),
            ("8.0.29", true),
            ("9.7.4", true),
        ] {
            assert_eq!(is_met(version, Mode::Xa), xa, "{version}");
        }
        assert!(is_met("10.5.29-MariaDB", Mode::Reserve));
        assert!(!is_met("10.5.1-MariaDB", Mode::Reserve));
        assert_ne!(of_sqlite("3.40.1").verdict, Verdict::Met);
        assert_eq!(of_sqlite("3.54.1").verdict, Verdict::Met);
    }
}
