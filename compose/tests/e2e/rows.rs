//! What stands in the three databases, read over fresh connections.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value};
use tokio_postgres::NoTls;

/// Where a participant's database is.
#[derive(Clone)]
pub enum Database {
    /// The URL.
    Postgres(String),
    /// The URL.
    Mariadb(String),
    /// The file.
    Sqlite(std::path::PathBuf),
}

/// All databases, by participant.
pub struct Rows(pub BTreeMap<String, Contents>);

/// One database.
#[derive(Default)]
pub struct Contents {
    /// The ledger, by txid.
    pub ledger: BTreeMap<String, LedgerRow>,
    /// Rows that carry a txid.
    pub business: Vec<BusinessRow>,
    /// Rows of all other tables but the ledger's, by table.
    pub reference: BTreeMap<String, Vec<Value>>,
    /// Prepared branches of this database, whosever they are; of MariaDB those of the whole server.
    pub prepared: Vec<String>,
}

/// A row of `suture_ledger`.
pub struct LedgerRow {
    pub state: String,
    pub business_key: Option<String>,
    pub code: Option<String>,
    pub duplicate_of: Option<String>,
    /// By the database's clock; texts of one database compare as times do.
    pub changed_at: String,
}

/// A business row.
pub struct BusinessRow {
    pub table: String,
    pub txid: String,
    /// All other columns.
    pub fields: Value,
}

impl Rows {
    /// Reads all databases.
    pub fn read(databases: &BTreeMap<String, Database>) -> Self {
        Self(databases.iter().map(|(name, database)| (name.clone(), Contents::read(database))).collect())
    }

    /// A participant's database.
    pub fn of(&self, participant: &str) -> &Contents {
        &self.0[participant]
    }

    /// All business rows without their txids, and what is kept beside them (coverages with what is used): equal after two
    /// runs that came to the same.
    pub fn without_txids(&self) -> BTreeSet<(String, String, String)> {
        let mut rows = BTreeSet::new();
        for (participant, contents) in &self.0 {
            let business = contents.business.iter().map(|row| (&row.table, &row.fields));
            let reference =
                contents.reference.iter().flat_map(|(table, rows)| rows.iter().map(move |row| (table, row)));
            for (table, fields) in business.chain(reference) {
                rows.insert((participant.clone(), table.clone(), fields.to_string()));
            }
        }
        rows
    }

    /// All business rows with their txids: equal before and after something that must change nothing.
    pub fn with_txids(&self) -> BTreeSet<(String, String, String, String)> {
        let mut rows = BTreeSet::new();
        for (participant, contents) in &self.0 {
            for BusinessRow { table, txid, fields } in &contents.business {
                rows.insert((participant.clone(), table.clone(), txid.clone(), fields.to_string()));
            }
            for (table, found) in &contents.reference {
                let found =
                    found.iter().map(|row| (participant.clone(), table.clone(), String::new(), row.to_string()));
                rows.extend(found);
            }
        }
        rows
    }
}

impl Contents {
    /// The state of a transaction in the ledger.
    pub fn state(&self, txid: &str) -> Option<&str> {
        self.ledger.get(txid).map(|row| row.state.as_str())
    }

    /// The transactions that have business rows.
    pub fn txids(&self) -> BTreeSet<&str> {
        self.business.iter().map(|row| row.txid.as_str()).collect()
    }

    /// A table's business rows.
    pub fn table(&self, table: &str) -> impl Iterator<Item = &BusinessRow> {
        self.business.iter().filter(move |row| row.table == table)
    }

    fn read(database: &Database) -> Self {
        let mut contents = Self::default();
        let tables = match database {
            Database::Postgres(url) => postgres_tables(url),
            Database::Mariadb(url) => mariadb_tables(url),
            Database::Sqlite(file) => sqlite_tables(file),
        };
        for (table, rows) in tables {
            for mut row in rows {
                if table == "suture_ledger" {
                    let text = |column: &str| row[column].as_str().map(str::to_string);
                    contents.ledger.insert(
                        text("txid").expect("a txid"),
                        LedgerRow {
                            state: text("state").expect("a state"),
                            business_key: text("business_key"),
                            code: text("code"),
                            duplicate_of: text("duplicate_of"),
                            changed_at: row["changed_at"].to_string(),
                        },
                    );
                } else if let Some(txid) = row.as_object_mut().and_then(|row| row.remove("txid")) {
                    let txid = txid.as_str().expect("a txid").to_string();
                    contents.business.push(BusinessRow { table: table.clone(), txid, fields: row });
                } else if !table.starts_with("suture_") {
                    contents.reference.entry(table.clone()).or_default().push(row);
                }
            }
        }
        contents.prepared = match database {
            Database::Postgres(url) => prepared(url),
            Database::Mariadb(url) => prepared_on_mariadb(url),
            Database::Sqlite(_) => Vec::new(),
        };
        contents
    }
}

/// The prepared branches of a PostgreSQL database, by gid.
pub fn prepared(url: &str) -> Vec<String> {
    query(url, "select gid from pg_prepared_xacts where database = current_database() order by prepared")
}

/// Runs statements.
pub fn execute(url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    connected(url, async |client| client.batch_execute(sql).await)
}

/// The first column of a query, which is text.
pub fn query(url: &str, sql: &str) -> Vec<String> {
    let rows = connected(url, async |client| client.query(sql, &[]).await).unwrap_or_else(|error| panic!("{error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// A connection of its own for each question: none outlives a server that is killed.
fn connected<T>(
    url: &str,
    ask: impl AsyncFnOnce(&tokio_postgres::Client) -> Result<T, tokio_postgres::Error>,
) -> Result<T, tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let connection = tokio::spawn(connection);
        let answer = ask(&client).await;
        drop(client);
        // It ends with the client.
        let _ = connection.await;
        answer
    })
}

fn postgres_tables(url: &str) -> BTreeMap<String, Vec<Value>> {
    let tables = query(url, "select table_name::text from information_schema.tables where table_schema = 'public'");
    let rows = |table: &String| {
        let rows = query(url, &format!("select to_jsonb(t)::text from \"{table}\" t"));
        rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect()
    };
    tables.iter().map(|table| (table.clone(), rows(table))).collect()
}

/// The prepared branches of a MariaDB server, both halves of their names joined by a slash.
fn prepared_on_mariadb(url: &str) -> Vec<String> {
    let rows: Vec<(u64, usize, u64, String)> = on_mariadb(url, async |connection| connection.query("xa recover").await);
    let halves = rows.iter().map(|(_, global, _, data)| data.split_at(*global));
    halves.map(|(global, branch)| format!("{global}/{branch}")).collect()
}

/// Runs statements on MariaDB.
pub fn execute_on_mariadb(url: &str, sql: &str) {
    on_mariadb(url, async |connection| connection.query_drop(sql).await);
}

/// The first column of a query on MariaDB, which is text.
pub fn query_on_mariadb(url: &str, sql: &str) -> Vec<String> {
    on_mariadb(url, async |connection| connection.query(sql).await)
}

fn on_mariadb<T>(url: &str, ask: impl AsyncFnOnce(&mut Conn) -> Result<T, mysql_async::Error>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let mut connection = Conn::new(Opts::from_url(url).unwrap()).await?;
        let answer = ask(&mut connection).await?;
        connection.disconnect().await?;
        Ok::<T, mysql_async::Error>(answer)
    });
    answer.unwrap_or_else(|error| panic!("{error:?}"))
}

fn mariadb_tables(url: &str) -> BTreeMap<String, Vec<Value>> {
    on_mariadb(url, async |connection| {
        let columns = "select table_name, group_concat(concat(quote(column_name), ', ', column_name) separator ', ')
                       from information_schema.columns where table_schema = database() group by table_name";
        let tables: Vec<(String, String)> = connection.query(columns).await?;
        let mut found = BTreeMap::new();
        for (table, columns) in tables {
            let rows: Vec<String> = connection.query(format!("select json_object({columns}) from {table}")).await?;
            found.insert(table, rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect());
        }
        Ok(found)
    })
}

fn sqlite_tables(file: &Path) -> BTreeMap<String, Vec<Value>> {
    // Not a read-only connection: the last one to close tidies the write-ahead log away, which such a one cannot.
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    connection.pragma_update(None, "query_only", true).unwrap();
    let mut names = connection.prepare("select name from sqlite_schema where type = 'table'").unwrap();
    let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut tables = BTreeMap::new();
    for table in names {
        let mut statement = connection.prepare(&format!("select * from \"{table}\"")).unwrap();
        let columns: Vec<String> = statement.column_names().map(str::to_string).collect();
        let mut found = statement.query([]).unwrap();
        let mut rows = Vec::new();
        while let Some(row) = found.next().unwrap() {
            let value = |index| match row.get_ref(index).unwrap() {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => number.into(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
                ValueRef::Real(_) | ValueRef::Blob(_) => panic!("{table} holds neither"),
            };
            let fields: Map<String, Value> =
                columns.iter().enumerate().map(|(index, column)| (column.clone(), value(index))).collect();
            rows.push(Value::Object(fields));
        }
        tables.insert(table, rows);
    }
    tables
}
