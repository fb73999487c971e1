//! The Docker compose file, which nobody runs here, says the same as the script's files, which every test runs on: names,
//! ports, broker settings, the settings and databases of PostgreSQL and MariaDB.

use std::collections::BTreeMap;

const COMPOSE: &str = include_str!("../docker-compose.yml");
const NODES: &str = include_str!("../servers/nodes");
const BROKER: &str = include_str!("../servers/broker.properties");
const POSTGRES: &str = include_str!("../servers/postgresql.conf");
const MARIADB: &str = include_str!("../servers/mariadb.cnf");
const POM: &str = include_str!("../servers/pom.xml");

/// Lines that say something, without comments.
fn said(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim_end())
        .filter(|line| !line.trim().is_empty())
}

/// The lines of one service of the compose file.
fn service(name: &str) -> String {
    let head = format!("  {name}:");
    let lines: Vec<&str> = said(COMPOSE).skip_while(|line| *line != "services:").collect();
    let begin = lines.iter().position(|line| *line == head).unwrap_or_else(|| panic!("no service {name}"));
    let is_inside = |line: &&&str| line.starts_with("    ");
    lines[begin + 1..].iter().take_while(is_inside).copied().collect::<Vec<_>>().join("\n")
}

#[test]
fn names_and_ports_are_the_scripts() {
    let mut brokers = 0;
    for node in said(NODES) {
        let mut columns = node.split_whitespace();
        let (name, port) = (columns.next().unwrap(), columns.next().unwrap());
        if name == "mysql" {
            continue; // optional there, and none here
        }
        let service = service(name);
        let inside = match name {
            "postgres" => "5432",
            "mariadb" => "3306",
            _ => "19092",
        };
        assert!(service.contains(&format!("127.0.0.1:{port}:{inside}")), "{name} listens elsewhere:\n{service}");
        if inside == "19092" {
            brokers += 1;
            assert!(service.contains(&format!("HOST://127.0.0.1:{port}")), "{name} advertises elsewhere");
            assert!(service.contains(&format!("KAFKA_NODE_ID: \"{brokers}\"")), "{name} has another node id");
        }
    }
    assert_eq!(brokers, 3);
}

#[test]
fn brokers_are_told_the_same() {
    let properties: BTreeMap<String, String> = said(BROKER)
        .map(|line| line.split_once('=').unwrap())
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let own =
        ["KAFKA_CONTROLLER_QUORUM_VOTERS", "KAFKA_LISTENERS", "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", "KAFKA_LOG_DIRS"];
    let repeated: BTreeMap<String, String> = said(COMPOSE)
        .take_while(|line| *line != "services:")
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("KAFKA_") && !own.contains(name))
        .map(|(name, value)| {
            let name = name.trim_start_matches("KAFKA_").replace('_', ".").to_lowercase();
            (name, value.trim_matches('"').to_string())
        })
        .collect();
    assert_eq!(repeated, properties);
}

#[test]
fn kafka_and_postgres_are_the_same() {
    let version = COMPOSE.split("image: apache/kafka:").nth(1).unwrap().lines().next().unwrap();
    assert!(
        POM.contains(&format!("<version>{version}</version>")) || POM.contains(&format!(">{version}<")),
        "{version}"
    );
    let postgres = service("postgres");
    let told: Vec<&str> = said(POSTGRES).collect();
    let options: Vec<String> = told.iter().map(|setting| format!("-c {setting}")).collect();
    assert!(postgres.contains(&options.join(" ")), "PostgreSQL is told something else:\n{postgres}");
    assert!(postgres.contains("./servers/databases.sql"), "the databases are not created");
}

#[test]
fn mariadb_is_told_the_same() {
    let mariadb = service("mariadb");
    let told: Vec<String> =
        mariadb.split_whitespace().filter(|word| word.starts_with("--")).map(str::to_string).collect();
    let options: Vec<String> =
        said(MARIADB).filter(|line| *line != "[mariadbd]").map(|setting| format!("--{setting}")).collect();
    assert_eq!(told, options);
    assert!(mariadb.contains("./servers/mariadb.sql"), "the database is not created");
}
