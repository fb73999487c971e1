//! A database as `suture doctor` sees it: everything that would keep a participant from serving, and not only the first.
//!
//! Nothing is created or changed, as with [`crate::books`].

use std::collections::BTreeSet;
use std::time::Duration;

use suture_contract::ids::Txid;
use suture_participants_core::operations::Mode;
use suture_participants_core::touched::Right;

use crate::books::{Asked, Books, facts_of, facts_text};
use crate::config::{Database, ParticipantConfig};
use crate::incidents::Listed;
use crate::install::{names, needed_rights, tables_of};
use crate::ledger::{check_mode, check_operations};
use crate::needs::{self, Need};
use crate::resource::{OpenError, Opening, Unavailable};
use crate::trial::steps;

/// What was seen of a database that answers.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// What it says about its version.
    pub version: String,
    /// All that matters to durability.
    pub needs: Vec<Need>,
    /// Rights that the role lacks: `update on bed`.
    pub lacks: Vec<String>,
    /// Steps that do not fit the tables.
    pub unfit: Vec<OpenError>,
    /// The ledger, or why there is none for this participant.
    pub ledger: Result<Ledger, OpenError>,
    /// The database's clock, in milliseconds since 1970.
    pub now_ms: Option<i64>,
}

/// A ledger that is this participant's.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Its name.
    pub id: String,
    /// What waits for its decision, with its age where the database tells it.
    pub in_doubt: Vec<(Txid, Option<Duration>)>,
    /// How many prepared branches are somebody else's.
    pub foreign: u64,
    /// What a shard stands still for until a person says what became of it.
    pub waiting: Vec<Listed>,
}

/// Looks at a participant's database.
///
/// # Errors
/// It does not answer.
pub async fn inspect(config: &ParticipantConfig, opening: &Opening) -> Result<Inspection, Unavailable> {
    let mut asked = Asked::open(&config.database, &opening.owner).await?;
    let version = asked.ask("asking for the version", asked.dialect().version).await?;
    let now_ms = asked.ask("asking for the time", asked.dialect().now_ms).await?;
    let needs = look_at_needs(&mut asked, config, opening).await?;
    let lacks = look_at_rights(&mut asked, config, opening).await?;
    let mut unfit = Vec::new();
    for step in steps(opening) {
        match asked.check_statement(step).await {
            Ok(()) => {}
            Err(OpenError::Unavailable(unavailable)) => return Err(unavailable),
            Err(error) => unfit.push(error),
        }
    }
    Ok(Inspection {
        version: facts_text(version).unwrap_or_else(|| "?".to_string()),
        needs,
        lacks,
        unfit,
        ledger: look_at_ledger(config, opening).await,
        now_ms: facts_text(now_ms).and_then(|text| text.split('.').next()?.parse().ok()),
    })
}

async fn look_at_needs(
    asked: &mut Asked,
    config: &ParticipantConfig,
    opening: &Opening,
) -> Result<Vec<Need>, Unavailable> {
    let doing = "reading settings";
    Ok(match &config.database {
        Database::Sqlite(_) => {
            let journal = facts_text(asked.ask(doing, "pragma journal_mode").await?).unwrap_or_default();
            vec![needs::of_sqlite(rusqlite::version()), needs::of_sqlite_file(&journal)]
        }
        Database::Postgres(settings) => {
            let facts = facts_of(asked.ask(doing, &needs::postgres_facts(&opening.owner)).await?);
            needs::of_postgres(&facts, opening.mode, settings)
        }
        Database::Mariadb(settings) => {
            let version = facts_text(asked.ask(doing, needs::MARIADB_VERSION).await?).unwrap_or_default();
            let facts = facts_of(asked.ask(doing, needs::mariadb_facts(&version)).await?);
            let mut all = needs::of_mariadb(&version, &facts, opening.mode, settings);
            let steps = opening.operations.values().flat_map(|operation| &operation.prepare);
            all.extend(needs::of_read_locks(opening.mode, steps));
            if opening.mode == Mode::Xa {
                let refused = asked.listed().await.err();
                all.push(needs::of_listing(refused.as_ref().map(|unavailable| unavailable.code.as_str())));
            }
            let engines = facts_text(asked.ask(doing, needs::OTHER_ENGINES).await?);
            all.push(needs::of_engines(engines.as_deref()));
            all
        }
    })
}

/// PostgreSQL says what a role may; MariaDB tells a step that may not run so when it is checked, and a ledger that may not be
/// written by its grants.
async fn look_at_rights(
    asked: &mut Asked,
    config: &ParticipantConfig,
    opening: &Opening,
) -> Result<Vec<String>, Unavailable> {
    let doing = "asking for rights";
    let dialect = config.database.dialect();
    let there = names(asked.ask(doing, tables_of(dialect)).await?);
    let mut needed: Vec<(String, Right)> = Vec::new();
    let ledger = there.iter().filter(|table| table.starts_with("suture_"));
    for table in ledger {
        needed.extend([Right::Select, Right::Insert, Right::Update, Right::Delete].map(|right| (table.clone(), right)));
    }
    let known = |table: &String| there.contains(&table.trim_matches('"').to_lowercase());
    for (table, rights) in needed_rights(steps(opening)).into_iter().filter(|(table, _)| known(table)) {
        needed.extend(rights.into_iter().map(|right| (table.clone(), right)));
    }
    let mut lacks = BTreeSet::new();
    match &config.database {
        Database::Sqlite(_) => {}
        Database::Postgres(_) => {
            for (table, right) in needed {
                let name = table.replace('\'', "''");
                let sql = format!("select 1 where has_table_privilege('{name}', '{}')", right.as_str());
                if asked.ask(doing, &sql).await?.is_empty() {
                    lacks.insert(format!("{} on {table}", right.as_str()));
                }
            }
        }
        Database::Mariadb(_) => {
            let me = "concat('''', replace(current_user(), '@', '''@'''), '''')";
            let sql = format!(
                "select '*', lower(privilege_type) from information_schema.user_privileges where grantee = {me}
                 union select '*', lower(privilege_type) from information_schema.schema_privileges
                     where grantee = {me} and database() like table_schema
                 union select lower(table_name), lower(privilege_type) from information_schema.table_privileges
                     where grantee = {me} and table_schema = database()"
            );
            let granted: BTreeSet<(String, String)> = asked
                .ask(doing, &sql)
                .await?
                .into_iter()
                .filter_map(|row| {
                    let mut texts = row.into_iter();
                    Some((texts.next()??, texts.next()??))
                })
                .collect();
            for (table, right) in needed {
                let may = |on: &str| granted.contains(&(on.to_string(), right.as_str().to_string()));
                if !may("*") && !may(&table.to_lowercase()) {
                    lacks.insert(format!("{} on {table}", right.as_str()));
                }
            }
        }
    }
    Ok(lacks.into_iter().collect())
}

async fn look_at_ledger(config: &ParticipantConfig, opening: &Opening) -> Result<Ledger, OpenError> {
    let mut books = Books::open(config, opening).await?;
    let listed = books.listed().await?;
    let rows = books.in_doubt().await?;
    let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    check_mode(opening.mode, count(rows.len()), count(listed.ours.len()))?;
    check_operations(&opening.operations, books.operations_in_doubt().await?)?;
    let of_list = listed.ours.iter().map(|branch| (branch.gid.txid, branch.age));
    let in_doubt = of_list.chain(rows.iter().map(|row| (row.txid, Some(row.age)))).collect();
    let waiting = books.incidents().await?.into_iter().filter(Listed::is_open).collect();
    Ok(Ledger { id: books.ledger_id().to_string(), in_doubt, foreign: listed.foreign, waiting })
}
