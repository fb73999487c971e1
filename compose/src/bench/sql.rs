//! One connection to a database server, whichever kind: statements as text, answers as text.
//!
//! Error text holds row values, so only its code is told.

use anyhow::{Context, anyhow, bail};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, Row, Value};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// What kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// MariaDB, and MySQL.
    Mariadb,
}

impl Kind {
    /// As it stands in a participant's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
        }
    }

    /// How its URLs begin.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mariadb => "mysql",
        }
    }
}

/// A server, and the account that may create databases there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// Which kind.
    pub kind: Kind,
    /// Where, with its password.
    url: String,
}

impl Server {
    /// From a URL, which is checked.
    pub fn new(kind: Kind, url: &str) -> anyhow::Result<Self> {
        let is_right = match kind {
            Kind::Postgres => url.contains("://") && url.parse::<tokio_postgres::Config>().is_ok(),
            Kind::Mariadb => Opts::from_url(url).is_ok(),
        };
        if !is_right {
            bail!("--{}: this is no URL of such a server; write {}://user@host:port/", kind.name(), kind.scheme());
        }
        Ok(Self { kind, url: url.to_string() })
    }

    /// The URL of one of its databases.
    pub fn url_of(&self, database: &str) -> String {
        let (url, options) = self.url.split_at(self.url.find('?').unwrap_or(self.url.len()));
        let host = url.find("://").map_or(0, |scheme| scheme + 3);
        let end = url[host..].find('/').map_or(url.len(), |slash| host + slash);
        format!("{}/{database}{options}", &url[..end])
    }

    /// Connects to one of its databases, or as the URL says.
    pub async fn connect(&self, database: Option<&str>) -> anyhow::Result<Connection> {
        let url = database.map_or_else(|| self.url.clone(), |database| self.url_of(database));
        let connecting = async {
            anyhow::Ok(match self.kind {
                Kind::Postgres => {
                    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.map_err(postgres_code)?;
                    // It ends with the client.
                    tokio::spawn(async { drop(connection.await) });
                    Connection::Postgres(client)
                }
                Kind::Mariadb => Connection::Mariadb(Conn::new(Opts::from_url(&url)?).await.map_err(mariadb_code)?),
            })
        };
        connecting.await.with_context(|| format!("connecting to --{}", self.kind.name()))
    }
}

/// A connection; it ends with the value.
pub enum Connection {
    Postgres(Client),
    Mariadb(Conn),
}

impl Connection {
    /// Runs a statement.
    pub async fn run(&mut self, sql: &str) -> anyhow::Result<()> {
        match self {
            Self::Postgres(client) => client.batch_execute(sql).await.map_err(postgres_code),
            Self::Mariadb(connection) => connection.query_drop(sql).await.map_err(mariadb_code),
        }
    }

    /// The rows of a question; NULL is empty text.
    pub async fn rows(&mut self, sql: &str) -> anyhow::Result<Vec<Vec<String>>> {
        Ok(match self {
            Self::Postgres(client) => {
                let messages = client.simple_query(sql).await.map_err(postgres_code)?;
                let rows = messages.into_iter().filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                });
                rows.map(|row| (0..row.len()).map(|i| row.get(i).unwrap_or_default().to_string()).collect()).collect()
            }
            Self::Mariadb(connection) => {
                let rows: Vec<Row> = connection.query(sql).await.map_err(mariadb_code)?;
                rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect()
            }
        })
    }

    /// The first column of the first row.
    pub async fn value(&mut self, sql: &str) -> anyhow::Result<String> {
        let first = self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next());
        first.context("a question was not answered")
    }
}

fn text(value: Value) -> String {
    match value {
        Value::NULL => String::new(),
        Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => other.as_sql(true),
    }
}

fn postgres_code(error: tokio_postgres::Error) -> anyhow::Error {
    match error.code().map(|state| state.code()) {
        Some(code @ "42501") => anyhow!("this user lacks a right ({code})"),
        Some(code) => anyhow!("the database refuses ({code})"),
        None => anyhow!("the database does not answer"),
    }
}

fn mariadb_code(error: mysql_async::Error) -> anyhow::Error {
    match error {
        mysql_async::Error::Server(error) => match error.code {
            code @ (1044 | 1142 | 1227) => anyhow!("this user lacks a right ({code})"),
            code => anyhow!("the database refuses ({code})"),
        },
        _ => anyhow!("the database does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_takes_the_place_of_another() {
        let cases = [
            (Kind::Postgres, "postgres://u:p@h:1/postgres?connect_timeout=3", "postgres://u:p@h:1/x?connect_timeout=3"),
            (Kind::Postgres, "postgres://u@h", "postgres://u@h/x"),
            (Kind::Mariadb, "mysql://root@127.0.0.1:3306/", "mysql://root@127.0.0.1:3306/x"),
        ];
        for (kind, url, expected) in cases {
            assert_eq!(Server::new(kind, url).unwrap().url_of("x"), expected);
        }
    }

    #[test]
    fn what_is_no_url_is_refused_without_being_shown() {
        for (kind, url) in [(Kind::Postgres, "host=h password=canary"), (Kind::Mariadb, "postgres://u:canary@h/")] {
            let refused = Server::new(kind, url).err().unwrap().to_string();
            assert!(refused.starts_with(&format!("--{}", kind.name())) && !refused.contains("canary"), "{refused}");
        }
    }
}
