//! A database as `suture doctor` sees it: everything that would keep a participant from serving, and not only the first.
//!
//! Nothing is created or changed, as with [`crate::books`].

use std::time::Duration;

use suture_contract::ids::Txid;
use suture_participants_core::operations::Mode;

use crate::books::{Asked, Books, facts_of, facts_text};
use crate::config::{Database, ParticipantConfig};
use crate::incidents::Listed;
use crate::install::{names, tables_of};
use crate::ledger::{check_mode, check_operations};
use crate::needs::{self, Need};
use crate::resource::{OpenError, Opening, Unavailable};
use crate::rights;
use crate::trial::steps;

/// What was seen of a database that answers.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// What it says about its version.
    pub version: String,
    /// All that matters to durability.
    pub needs: Vec<Need>,
    /// Steps that the role may not run, and which rights they need.
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
    let (lacks, unfit) = look_at_statements(&mut asked, config, opening).await?;
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

/// What the role may not do, and what does not fit the tables: the ledger's own statements, and every step.
async fn look_at_statements(
    asked: &mut Asked,
    config: &ParticipantConfig,
    opening: &Opening,
) -> Result<(Vec<String>, Vec<OpenError>), Unavailable> {
    let of_ledger = match &config.database {
        Database::Sqlite(_) => Vec::new(),
        Database::Postgres(_) | Database::Mariadb(_) => {
            rights::of_ledger(&names(asked.ask("looking for the ledger", tables_of(config.database.dialect())).await?))
        }
    };
    let (mut lacks, mut unfit) = (Vec::new(), Vec::new());
    for step in of_ledger.iter().chain(steps(opening)) {
        match asked.check_statement(step).await {
            Ok(()) => {}
            Err(OpenError::Unavailable(unavailable)) => return Err(unavailable),
            Err(error @ OpenError::Lacks { .. }) => lacks.push(error.to_string()),
            Err(error) => unfit.push(error),
        }
    }
    Ok((lacks, unfit))
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
