//! Databases that exist for one measurement, and what their servers count.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use suture_contract::ids::{Deployment, LogLetters};
use tokio::time::{Instant, sleep};

use super::sql::{Connection, Kind, Server};
use super::workload;

/// How long a server may take to notice that our connections are gone.
const NOTICES_WITHIN: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long one connection commits rows by itself.
const ALONE_FOR: Duration = Duration::from_secs(1);

/// A database for each participant, each of a name that nothing else has.
pub struct Scratch {
    databases: Vec<Database>,
    /// Stands in the names of prepared branches.
    deployment: Deployment,
}

struct Database {
    server: Server,
    name: String,
    /// It may be there.
    is_made: bool,
}

impl Scratch {
    /// So many databases, over these servers in turn. None is created yet.
    pub fn new(servers: &[Server], letters: LogLetters, deployment: &Deployment, count: u8) -> Self {
        let database = |(number, server): (u8, &Server)| Database {
            server: server.clone(),
            name: format!("suture_bench_{letters}_{number}"),
            is_made: false,
        };
        let databases = (1..=count).zip(servers.iter().cycle()).map(database).collect();
        Self { databases, deployment: deployment.clone() }
    }

    /// Creates and fills them.
    pub async fn create(&mut self) -> anyhow::Result<()> {
        for database in &mut self.databases {
            let Database { server, name, is_made } = database;
            let mut admin = server.connect(None).await?;
            // Whatever comes of it, it is looked for at the end.
            *is_made = true;
            admin.run(&format!("create database {name}")).await.with_context(|| {
                let kind = server.kind.name();
                format!(
                    "--{kind}: the bench makes databases of its own, and {name} cannot be created; name a user who may \
                     create databases"
                )
            })?;
            let mut connection = server.connect(Some(name)).await?;
            for statement in workload::tables() {
                connection.run(&statement).await.context("making the bench's tables")?;
            }
        }
        Ok(())
    }

    /// Their URLs, a participant's each.
    pub fn urls(&self) -> impl Iterator<Item = String> {
        self.databases.iter().map(|database| database.server.url_of(&database.name))
    }

    /// How many rows one connection commits in a second, one after the other: what the server's disk and one round trip allow.
    pub async fn commits_alone(&self) -> anyhow::Result<f64> {
        let Some(Database { server, name, .. }) = self.databases.first() else { bail!("no database") };
        let mut connection = server.connect(Some(name)).await?;
        connection.run("create table alone (n bigint not null)").await?;
        let (started, mut commits) = (Instant::now(), 0_u64);
        while started.elapsed() < ALONE_FOR {
            connection.run("insert into alone values (1)").await?;
            commits += 1;
        }
        Ok(commits as f64 / started.elapsed().as_secs_f64())
    }

    /// What the servers have flushed so far: PostgreSQL its write-ahead log, MariaDB all of InnoDB. A server counts for all its
    /// databases, and PostgreSQL for a connection when that ends: so nobody may be connected.
    pub async fn fsyncs(&self) -> anyhow::Result<u64> {
        let mut fsyncs = 0;
        for server in self.servers() {
            let mut connection = server.connect(None).await?;
            self.until_nobody_is_connected(server.kind, &mut connection).await?;
            fsyncs += match server.kind {
                Kind::Postgres => {
                    let is_in_io =
                        connection.value("select current_setting('server_version_num')::int >= 180000").await?;
                    let counted = match is_in_io.as_str() {
                        "t" => "select coalesce(sum(fsyncs), 0)::bigint from pg_stat_io where object = 'wal'",
                        _ => "select wal_sync from pg_stat_wal",
                    };
                    connection.value(counted).await?.parse::<u64>()?
                }
                Kind::Mariadb => {
                    let counted = connection.rows("show global status like 'Innodb_data_fsyncs'").await?;
                    counted.first().and_then(|row| row.get(1)).context("the server counts no fsyncs")?.parse::<u64>()?
                }
            };
        }
        Ok(fsyncs)
    }

    /// Compares every database with what must be in it.
    pub async fn verify(&self, committed: u64) -> anyhow::Result<()> {
        for Database { server, name, .. } in &self.databases {
            let mut connection = server.connect(Some(name)).await?;
            for (question, expected) in workload::truths(committed) {
                let found = connection.value(question).await?;
                if found != expected {
                    bail!("{name} holds {found} and not {expected} ({question}): the figures mean nothing");
                }
            }
            let left = prepared(server.kind, &mut connection, &self.deployment).await?.len();
            if left != 0 {
                bail!("{left} prepared branches are left on the server of {name}: the figures mean nothing");
            }
        }
        Ok(())
    }

    /// Drops them, with branches that are in doubt. Tries all, whatever becomes of one.
    pub async fn drop_all(self) -> anyhow::Result<()> {
        let mut left = Vec::new();
        for Database { server, name, is_made } in &self.databases {
            if *is_made && let Err(error) = drop_database(server, name, &self.deployment).await {
                left.push(format!("{name} ({error:#})"));
            }
        }
        if !left.is_empty() {
            bail!("databases of the bench are left, drop them by hand: {}", left.join(", "));
        }
        Ok(())
    }

    fn servers(&self) -> BTreeSet<&Server> {
        self.databases.iter().map(|database| &database.server).collect()
    }

    async fn until_nobody_is_connected(&self, kind: Kind, connection: &mut Connection) -> anyhow::Result<()> {
        let names: Vec<String> = self.databases.iter().map(|database| format!("'{}'", database.name)).collect();
        let names = names.join(", ");
        let connected = match kind {
            Kind::Postgres => format!("select count(*) from pg_stat_activity where datname in ({names})"),
            Kind::Mariadb => format!("select count(*) from information_schema.processlist where db in ({names})"),
        };
        let deadline = Instant::now() + NOTICES_WITHIN;
        while connection.value(&connected).await? != "0" {
            if Instant::now() > deadline {
                bail!("somebody stays connected to the bench's databases");
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

/// Statements that roll back what is prepared: in PostgreSQL in the database that we are in, in MariaDB of this deployment.
async fn prepared(kind: Kind, connection: &mut Connection, deployment: &Deployment) -> anyhow::Result<Vec<String>> {
    Ok(match kind {
        Kind::Postgres => {
            let listed =
                connection.rows("select gid from pg_prepared_xacts where database = current_database()").await?;
            listed.iter().flatten().map(|gid| format!("rollback prepared '{gid}'")).collect()
        }
        Kind::Mariadb => {
            let listed = connection.rows("xa recover").await?;
            listed.iter().filter_map(|row| roll_back(row, deployment)).collect()
        }
    })
}

/// From a row of XA RECOVER: format, the lengths of both parts, and the parts joined.
fn roll_back(row: &[String], deployment: &Deployment) -> Option<String> {
    let [format, global, _, data] = row else { return None };
    let (global, branch) = data.split_at_checked(global.parse().ok()?)?;
    let is_ours = branch.strip_prefix(deployment.as_str()).is_some_and(|rest| rest.starts_with('/'));
    is_ours.then(|| format!("xa rollback '{global}', '{branch}', {format}"))
}

async fn drop_database(server: &Server, name: &str, deployment: &Deployment) -> anyhow::Result<()> {
    let mut admin = server.connect(None).await?;
    let exists = match server.kind {
        Kind::Postgres => format!("select count(*) from pg_database where datname = '{name}'"),
        Kind::Mariadb => format!("select count(*) from information_schema.schemata where schema_name = '{name}'"),
    };
    if admin.value(&exists).await? == "0" {
        return Ok(());
    }
    let mut inside = server.connect(Some(name)).await?;
    let deadline = Instant::now() + NOTICES_WITHIN;
    loop {
        let branches = prepared(server.kind, &mut inside, deployment).await?;
        if branches.is_empty() {
            break;
        }
        for branch in branches {
            // Refused while a session has it that the server still believes to live: tried again.
            if let Err(error) = inside.run(&branch).await
                && Instant::now() > deadline
            {
                return Err(error.context("rolling back a branch in doubt"));
            }
        }
        sleep(LOOK_AGAIN).await;
    }
    drop(inside);
    let how = if server.kind == Kind::Postgres { " with (force)" } else { "" };
    admin.run(&format!("drop database {name}{how}")).await
}
