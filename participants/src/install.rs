//! What `suture participant init` prints, or runs: the ledger's tables or what brings those of an older version up to date, its
//! marks, and the least rights of the role that the participant logs in as.
//!
//! ```text
//! the ledger    select, insert, update on its five tables; delete where anything is deleted
//! the business  what the steps of the configuration do with each table, read from their text
//! no DDL        so a participant with these rights starts only where there is a ledger already
//! ```
//!
//! A new role gets no password here, and on MariaDB its account is locked until it has one: a script that is kept in a file should
//! hold no secret.

use std::collections::{BTreeMap, BTreeSet};

use suture_participants_core::gid::Owner;
use suture_participants_core::operations::{Mode, Step};
use suture_participants_core::sql::Dialect;
use suture_participants_core::touched::{Right, rights};

use crate::books::{Asked, TextRow, facts_of, facts_text};
use crate::config::Database;
use crate::ledger::SCHEMA_VERSION;
use crate::needs::{MARIADB_VERSION, is_mariadb};
use crate::resource::{OpenError, Opening, Unavailable};
use crate::tables::{self, READ_MARKS, missing_marks};
use crate::trial::steps;
use crate::{mariadb, postgres, sqlite};

const ALL: [Right; 4] = [Right::Select, Right::Insert, Right::Update, Right::Delete];
const KEPT: [Right; 3] = [Right::Select, Right::Insert, Right::Update];

/// The ledger's tables, each with a column of its, and what its participant does with it.
pub(crate) const LEDGER: [(&str, &str, &[Right]); 5] = [
    ("suture_meta", "name", &ALL),
    ("suture_positions", "topic", &KEPT),
    ("suture_marks", "letters", &KEPT),
    ("suture_audit", "entry", &KEPT),
    ("suture_ledger", "txid", &ALL),
];

const UNSEEN: &str = "this is for a database that holds no ledger yet, and every table that a step names; on PostgreSQL in the \
                      schema public";

/// What is to be set up.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The database, as somebody who may create tables in it reaches it.
    pub database: &'a Database,
    /// Whose ledger, and what its participant does.
    pub opening: &'a Opening,
    /// Who the participant logs in as; `None`: as who sets it up.
    pub role: Option<&'a str>,
}

/// What sets a ledger up.
#[derive(Debug, Clone)]
pub struct Script {
    /// What was found, and what a person should know, a line each.
    pub notes: Vec<String>,
    /// To be run in this order.
    pub statements: Vec<String>,
    dialect: Dialect,
    /// How many branches hold an older ledger's tables.
    in_the_way: u64,
}

impl Script {
    /// Looks at the database, and changes nothing there.
    ///
    /// # Errors
    /// It does not answer, or holds somebody else's ledger, or one of a newer version.
    pub async fn of(wanted: &Wanted<'_>) -> Result<Self, OpenError> {
        let Wanted { database, opening, .. } = wanted;
        let is_new_file = matches!(database, Database::Sqlite(settings) if !settings.path.exists());
        let seen = match is_new_file {
            true => Seen::nothing(),
            false => Seen::look(database, &opening.owner).await?,
        };
        Self::for_what_is_there(wanted, &seen)
    }

    /// Without looking.
    pub fn unseen(wanted: &Wanted<'_>) -> Result<Self, OpenError> {
        let mut seen = Seen::nothing();
        if let Some(name) = wanted.database.name() {
            seen.database = quoted(&name, '"');
        }
        let mut script = Self::for_what_is_there(wanted, &seen)?;
        script.notes.insert(0, format!("{} was not looked at: {UNSEEN}", wanted.database.place()));
        Ok(script)
    }

    fn for_what_is_there(wanted: &Wanted<'_>, seen: &Seen) -> Result<Self, OpenError> {
        let dialect = wanted.database.dialect();
        let mut script = Self { notes: Vec::new(), statements: Vec::new(), dialect, in_the_way: 0 };
        script.tables(wanted.opening, seen)?;
        if let Some(role) = wanted.role {
            script.grants(wanted, seen, role);
        }
        Ok(script)
    }

    /// Whether there is nothing to be done.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// As it is piped into psql, mariadb or sqlite3.
    pub fn text(&self) -> String {
        let (begin, commit) = match self.dialect {
            Dialect::Postgres => ("begin;\n", "commit;\n"),
            // It stays in the file, and cannot be set inside a transaction.
            Dialect::Sqlite => ("pragma journal_mode = wal;\nbegin immediate;\n", "commit;\n"),
            Dialect::Mariadb => ("", ""),
        };
        let mut text: String = self.notes.iter().map(|note| format!("-- {note}\n")).collect();
        if !self.is_empty() {
            text.push_str(begin);
            for statement in &self.statements {
                text.push_str(statement.trim_end().trim_end_matches(';'));
                text.push_str(";\n");
            }
            text.push_str(commit);
        }
        text
    }

    /// Runs it.
    ///
    /// # Errors
    /// Branches in doubt are in the way of a migration.
    pub async fn run(&self, wanted: &Wanted<'_>) -> Result<(), OpenError> {
        let in_the_way = |value: String| {
            OpenError::Need {
            setting: "what is in doubt in a ledger of an older version",
            value,
            remedy: "wait until nothing is (the older build decides it), then run this again: tables that a prepared branch has \
                     written cannot be altered"
                .to_string(),
        }
        };
        if self.in_the_way > 0 {
            return Err(in_the_way(format!("{} branches", self.in_the_way)));
        }
        let statements: Vec<String> =
            self.statements.iter().map(|sql| sql.trim_end().trim_end_matches(';').to_string()).collect();
        let ran = match wanted.database {
            Database::Postgres(settings) => postgres::execute(settings, &wanted.opening.owner, &statements).await,
            Database::Mariadb(settings) => mariadb::execute(settings, &statements).await,
            Database::Sqlite(settings) => sqlite::execute(settings.clone(), &statements).await,
        };
        match ran {
            // Somebody holds the ledger since it was looked at.
            Err(Unavailable { code, .. }) if code == "55P03" || code == "1205" => {
                Err(in_the_way("somebody's".to_string()))
            }
            ran => Ok(ran?),
        }
    }

    fn tables(&mut self, opening: &Opening, seen: &Seen) -> Result<(), OpenError> {
        let version = seen.marks.get("schema_version").map(String::as_str);
        let present = SCHEMA_VERSION.to_string();
        let mut marks = seen.marks.clone();
        match version {
            None => {
                self.notes.push(format!("a new ledger of version {present}"));
                match self.dialect {
                    Dialect::Postgres => self.statements.extend(statements(tables::POSTGRES)),
                    Dialect::Sqlite => self.statements.extend(statements(tables::SQLITE)),
                    Dialect::Mariadb => self
                        .statements
                        .extend(tables::MARIADB.map(|(name, columns)| tables::mariadb_table(name, columns))),
                }
            }
            Some("1") => {
                self.notes.push(format!("the ledger is of version 1 and becomes one of version {present}"));
                // In mode reserve a branch in doubt is a row, and holds nothing.
                self.in_the_way = seen.prepared;
                if self.in_the_way > 0 {
                    self.notes.push(format!(
                        "{} branches are in doubt here: wait until the older build has decided them, for what they have written \
                         cannot be altered",
                        self.in_the_way
                    ));
                }
                self.statements.extend(match self.dialect {
                    Dialect::Postgres => statements(&tables::postgres_from_1()),
                    Dialect::Sqlite => statements(&tables::sqlite_from_1()),
                    Dialect::Mariadb => tables::mariadb_from_1(seen.named_check.as_deref()),
                });
                marks.insert("schema_version".to_string(), present);
            }
            Some(version) if version == present => {
                self.notes.push(format!("the ledger is there, of version {present}"));
            }
            Some(version) => return Err(OpenError::Version { found: version.to_string() }),
        }
        self.statements.extend(missing_marks(self.dialect, &marks, opening)?);
        Ok(())
    }

    fn grants(&mut self, wanted: &Wanted<'_>, seen: &Seen, role: &str) {
        let to = match self.dialect {
            Dialect::Sqlite => return,
            Dialect::Postgres => {
                let to = quoted(role, '"');
                let name = role.replace('\'', "''");
                self.notes.push(format!(
                    "a role that is new has no password: give it one with \\password {role} in psql, or allow it in pg_hba.conf"
                ));
                self.statements.push(format!(
                    "do $$ begin if not exists (select from pg_roles where rolname = '{name}') then create role {to} login; end if; \
                     end $$"
                ));
                self.statements.push(format!("grant connect on database {} to {to}", seen.database));
                self.statements.push(format!("grant usage on schema {} to {to}", seen.schema));
                to
            }
            Dialect::Mariadb => {
                let (user, host) = role.split_once('@').unwrap_or((role, "%"));
                let to = format!("{}@{}", quoted(user, '\''), quoted(host, '\''));
                self.notes.push(format!(
                    "an account that is new is locked: alter user {to} identified by '...' account unlock"
                ));
                self.statements.push(format!("create user if not exists {to} account lock"));
                // What was not looked at may be either of the two. MySQL alone reads what stands in the comment; for MariaDB
                // nothing is granted.
                if wanted.opening.mode == Mode::Xa && !seen.is_mariadb {
                    self.statements.push(format!("grant usage /*!80000 , xa_recover_admin */ on *.* to {to}"));
                }
                to
            }
        };
        for (table, _, rights) in LEDGER {
            self.statements.push(format!("grant {} on {table} to {to}", list(rights)));
        }
        for (table, needed) in needed_rights(steps(wanted.opening)) {
            match seen.has(&table) {
                true => {
                    let needed: Vec<Right> = needed.into_iter().collect();
                    self.statements.push(format!("grant {} on {table} to {to}", list(&needed)));
                }
                false => self.notes.push(format!(
                    "a step names {table}, which is not there: if it is a table, create it and run this again for its rights"
                )),
            }
        }
    }
}

/// The rights that these steps need on tables of the business.
fn needed_rights<'a>(steps: impl Iterator<Item = &'a Step>) -> BTreeMap<String, BTreeSet<Right>> {
    let mut needed: BTreeMap<String, BTreeSet<Right>> = BTreeMap::new();
    for step in steps {
        for (table, rights) in rights(&step.sql) {
            // A ledger's own rights are always the same, and `dual` is no table.
            if !table.starts_with("suture_") && !table.eq_ignore_ascii_case("dual") {
                needed.entry(table).or_default().extend(rights);
            }
        }
    }
    needed
}

/// What there is in a database.
pub(crate) struct Seen {
    marks: BTreeMap<String, String>,
    tables: Option<BTreeSet<String>>,
    /// Branches of this participant in the database's list.
    prepared: u64,
    database: String,
    schema: String,
    /// Whether it says that it is.
    is_mariadb: bool,
    /// The name that MySQL has given the check of the states.
    named_check: Option<String>,
}

impl Seen {
    /// Of a database that does not answer, or that is to come.
    fn nothing() -> Self {
        Self {
            marks: BTreeMap::new(),
            tables: None,
            prepared: 0,
            database: "current_database".to_string(),
            schema: "public".to_string(),
            is_mariadb: false,
            named_check: None,
        }
    }

    async fn look(database: &Database, owner: &Owner) -> Result<Self, Unavailable> {
        let mut asked = Asked::open(database, owner).await?;
        let doing = "looking for the ledger";
        let mut seen = Self::nothing();
        if !asked.ask(doing, asked.dialect().is_there).await?.is_empty() {
            seen.marks = facts_of(asked.ask(doing, READ_MARKS).await?);
        }
        seen.tables = Some(names(asked.ask(doing, tables_of(database.dialect())).await?));
        let listed = asked.listed().await.unwrap_or_default();
        seen.prepared =
            listed.iter().filter(|(gid, _)| gid.as_ref().is_some_and(|gid| gid.owner == *owner)).count() as u64;
        match database.dialect() {
            Dialect::Sqlite => {}
            Dialect::Postgres => {
                let row =
                    asked.ask(doing, "select quote_ident(current_database()), quote_ident(current_schema())").await?;
                if let Some((database, schema)) = facts_of(row).pop_first() {
                    (seen.database, seen.schema) = (database, schema);
                }
            }
            Dialect::Mariadb => {
                let version = facts_text(asked.ask(doing, MARIADB_VERSION).await?).unwrap_or_default();
                seen.is_mariadb = is_mariadb(&version);
                if !seen.is_mariadb {
                    let sql = "select constraint_name from information_schema.check_constraints
                               where constraint_schema = database() and check_clause like '%refused%'";
                    seen.named_check = facts_text(asked.ask(doing, sql).await?);
                }
            }
        }
        Ok(seen)
    }

    /// Whether there is a table of that name; of what lies in another schema nobody knows.
    fn has(&self, table: &str) -> bool {
        let Some(tables) = &self.tables else { return true };
        table.contains('.') || tables.contains(&table.trim_matches('"').to_lowercase())
    }
}

/// Asks for the names of all tables that can be named without their schema.
pub(crate) fn tables_of(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => {
            "select relname from pg_class where pg_table_is_visible(oid) and relkind in ('r', 'p', 'v', 'm', 'f')"
        }
        Dialect::Mariadb => "select table_name from information_schema.tables where table_schema = database()",
        Dialect::Sqlite => "select name from sqlite_master where type in ('table', 'view')",
    }
}

/// The first column, in small letters.
pub(crate) fn names(rows: Vec<TextRow>) -> BTreeSet<String> {
    rows.into_iter().filter_map(|row| row.into_iter().next()?).map(|name| name.to_lowercase()).collect()
}

/// The statements of a script of our own, which holds no text with a semicolon.
fn statements(script: &str) -> Vec<String> {
    script.split(';').map(|statement| statement.trim().to_string()).filter(|statement| !statement.is_empty()).collect()
}

/// As they stand in a GRANT.
pub(crate) fn list(rights: &[Right]) -> String {
    rights.iter().map(|right| right.as_str()).collect::<Vec<_>>().join(", ")
}

fn quoted(name: &str, quote: char) -> String {
    format!("{quote}{}{quote}", name.replace(quote, &format!("{quote}{quote}")))
}
