//! The configurations that come with Suture, on their own schemas: every reason code, and that nothing stays behind.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{abort, code, commit, deployment, hash, prepare_one, txid, yes};
use mysql_async::prelude::Queryable;
use rusqlite::Connection;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use suture_contract::ids::Attempt;
use suture_contract::messages::Prepare;
use suture_participants::config::{Database, ParticipantConfig};
use suture_participants::opened::OpenedResource;
use suture_participants::resource::{Effect, Resource};
use tokio_postgres::NoTls;

fn config(name: &str) -> ParticipantConfig {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../compose/config/participants").join(name);
    let text = std::fs::read_to_string(&file).unwrap();
    // Where the database is, is the test's business.
    let url = if name.contains("mariadb") { "url = \"mysql://nowhere/x\"" } else { "url = \"postgres://nowhere\"" };
    let text = text.lines().map(|line| if line.starts_with("url_env") { url } else { line });
    ParticipantConfig::parse(&text.collect::<Vec<_>>().join("\n"), &file).unwrap()
}

async fn open(mut config: ParticipantConfig, at: &str) -> OpenedResource {
    match &mut config.database {
        Database::Sqlite(settings) => settings.path = PathBuf::from(at),
        Database::Postgres(settings) | Database::Mariadb(settings) => {
            settings.url = at.to_string();
            settings.cap = 10;
        }
    }
    let opening = config.opening(&deployment(), None, true).unwrap();
    OpenedResource::open(&config, opening).await.unwrap()
}

fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap()
}

fn of(operation: &str, n: u64, payload: &Value) -> Arc<Prepare> {
    Arc::new(Prepare {
        txid: txid(n),
        business_key: format!("surgery:{n}:1").parse().unwrap(),
        attempt: Attempt::FIRST,
        operation: operation.to_string(),
        payload: raw(payload),
        hash: hash(&payload.to_string()),
        order_key: None,
    })
}

/// A payload with one field changed.
fn with(payload: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = payload.clone();
    match changed.pointer_mut(pointer) {
        Some(field) => *field = value,
        None => changed[&pointer[1..]] = value,
    }
    changed
}

fn surgery() -> Value {
    json!({
        "case": "case-1",
        "patient": { "system": "mrn", "value": "p-1" },
        "class": "IMP", "status": "finished",
        "start": "2020-03-01T08:00:00+00:00", "end": "2020-03-05T08:00:00+00:00",
        "first_start": "2020-03-01T09:00:00+01:00", "last_end": "2020-03-01T12:00:00Z",
        "surgeon": { "system": "npi", "value": "s-1" },
        "code": { "system": "sct", "code": "80146002" },
        "procedures": [{ "system": "sct", "code": "80146002", "start": "2020-03-01T09:00:00Z", "end": "2020-03-01T12:00:00Z" }],
    })
}

/// Prepares each payload and compares the code; what says yes is committed.
async fn codes(resource: &OpenedResource, operation: &str, cases: &[(Value, &str)]) {
    for (n, (payload, expected)) in cases.iter().enumerate() {
        let branch = of(operation, n as u64, payload);
        let prepared = prepare_one(resource, &branch).await;
        if *expected == "yes" {
            assert_eq!(prepared, yes(), "case {n}");
            assert_eq!(commit(resource, &branch).await, Ok(Effect::Finished));
        } else {
            assert_eq!(code(&prepared), *expected, "case {n}");
        }
    }
}

async fn hospital_answers(hospital: &OpenedResource) {
    let seed = |value: &str, bucket, deceased: Option<&str>| {
        let mut row = json!({ "patient": { "system": "mrn", "value": value }, "bucket": bucket });
        if let Some(deceased) = deceased {
            row["deceased"] = json!(deceased);
        }
        raw(&row)
    };
    let rows = vec![
        seed("p-1", 1, None),
        seed("p-2", 2, Some("2020-03-01T07:59:59Z")),
        seed("p-3", 3, Some("2020-03-01T08:00:00Z")),
        seed("p-0", 0, None),
    ];
    assert_eq!(hospital.seed("seed_patient".to_string(), rows.clone()).await, Ok(3));
    assert_eq!(hospital.seed("seed_patient".to_string(), rows).await, Ok(0));
    let patient =
        |value: &str, case: &str| with(&with(&surgery(), "/patient/value", json!(value)), "/case", json!(case));
    let cases = [
        (surgery(), "yes"),
        (surgery(), "DUPLICATE"),
        (patient("p-0", "case-2"), "PATIENT_UNKNOWN"),
        (patient("p-2", "case-3"), "PATIENT_DECEASED"),
        (patient("p-3", "case-4"), "yes"),
        (with(&patient("p-1", "case-5"), "/last_end", json!("2020-10-01T00:00:00Z")), "yes"),
        (with(&patient("p-1", "case-6"), "/last_end", json!("2021-03-01T00:00:00Z")), "ENCOUNTER_MISMATCH"),
        (with(&patient("p-1", "case-7"), "/first_start", json!("2019-01-01T00:00:00Z")), "ENCOUNTER_MISMATCH"),
        (with(&patient("p-1", "case-8"), "/end", json!("2020-02-01T00:00:00Z")), "ENCOUNTER_MISMATCH"),
        (with(&patient("p-1", "case-9"), "/start", json!("2020-03-01")), "unreadable"),
        (with(&patient("p-1", "case-10"), "/start", Value::Null), "unreadable"),
    ];
    codes(hospital, "record_surgery", &cases).await;

    let dropped = of("record_surgery", 50, &patient("p-1", "case-50"));
    assert_eq!(prepare_one(hospital, &dropped).await, yes());
    assert_eq!(abort(hospital, &dropped).await, Ok(Effect::Finished));
}

async fn insurer_answers(insurer: &OpenedResource) {
    let seed = |member: &str, coverage, limit, start: &str, end: Option<&str>| {
        let mut row = json!({
            "member": member, "payer": "x", "start": start, "bucket_coverage": coverage, "bucket_limit": limit,
            "total": { "value": 1, "currency": "USD" },
        });
        if let Some(end) = end {
            row["end"] = json!(end);
        }
        raw(&row)
    };
    let rows = vec![
        seed("m-1", 1, 1, "1900-01-01", None),
        seed("m-2", 1, 0, "1900-01-01", None),
        seed("m-3", 1, 1, "2019-01-01", Some("2020-03-01")),
        seed("m-3", 1, 0, "2010-01-01", Some("2020-12-31")),
        seed("m-0", 0, 1, "1900-01-01", None),
    ];
    assert_eq!(insurer.seed("seed_coverage".to_string(), rows.clone()).await, Ok(4));
    assert_eq!(insurer.seed("seed_coverage".to_string(), rows).await, Ok(0));
    let claim = |id: &str, member: &str, date: &str, total: &str| -> Value {
        serde_json::from_str(&format!(
            r#"{{"claim":"{id}","member":"{member}","payer":"x","provider":{{"system":"o","value":"h"}},
                 "code":{{"system":"sct","code":"80146002"}},"service_date":"{date}",
                 "total":{{"value":{total},"currency":"USD"}},"net_sum":10.5}}"#
        ))
        .unwrap()
    };
    let cases = [
        (claim("c-1", "m-1", "2020-03-01", "15402.80"), "yes"),
        (claim("c-1", "m-1", "2020-03-02", "15402.80"), "DUPLICATE"),
        (claim("c-2", "m-1", "2020-03-01", "15402.80"), "DUPLICATE"),
        (claim("c-3", "m-2", "2020-03-01", "125.00"), "LIMIT"),
        (claim("c-4", "m-0", "2020-03-01", "125.00"), "NO_COVERAGE"),
        (claim("c-5", "m-3", "2020-03-01", "125.00"), "yes"),
        (claim("c-6", "m-3", "2021-03-02", "125.00"), "NO_COVERAGE"),
        (claim("c-7", "m-1", "2020-04-01", "125.001"), "AMOUNT"),
        (claim("c-8", "m-1", "2020-04-01", "10.49"), "AMOUNT"),
        (claim("c-9", "m-1", "2020-04-01", "10.5"), "yes"),
        (with(&claim("c-13", "m-1", "2020-06-01", "1"), "/total/currency", json!("EUR")), "NO_COVERAGE"),
    ];
    codes(insurer, "reserve_claim", &cases).await;
    // 10,000,000.00 in all, 15,413.30 of it used.
    for (n, (id, total, expected)) in
        [("c-10", "9984586.71", "LIMIT"), ("c-11", "9984586.70", "yes")].into_iter().enumerate()
    {
        let branch = of("reserve_claim", 30 + n as u64, &claim(id, "m-1", "2020-05-01", total));
        let prepared = prepare_one(insurer, &branch).await;
        if expected == "yes" {
            assert_eq!(prepared, yes());
            assert_eq!(abort(insurer, &branch).await, Ok(Effect::Finished));
        } else {
            assert_eq!(code(&prepared), expected);
        }
    }
}

#[tokio::test]
async fn the_hospital_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hospital.sqlite");
    let hospital = open(config("hospital.sqlite.toml"), file.to_str().unwrap()).await;
    hospital_answers(&hospital).await;
    let rows = |sql: &str| Connection::open(&file).unwrap().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows("update patient set merged_into = 'p-1' where value = 'p-3' returning 1"), 1);
    let merged = with(&with(&surgery(), "/patient/value", json!("p-3")), "/case", json!("case-60"));
    assert_eq!(code(&prepare_one(&hospital, &of("record_surgery", 60, &merged)).await), "PATIENT_MERGED");
    assert_eq!(rows("select count(*) from surgery where state = 'recorded'"), 3);
    assert_eq!(rows("select count(*) from surgery s join encounter e using (case_id, txid)"), 3);
}

#[tokio::test]
async fn the_insurer_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("insurer.sqlite");
    insurer_answers(&open(config("insurer.sqlite.toml"), file.to_str().unwrap()).await).await;
    let rows = |sql: &str| Connection::open(&file).unwrap().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows("select count(*) from claim where state = 'accepted'"), 3);
    assert_eq!(rows("select sum(used_minor) - (select sum(amount_minor) from claim) from coverage"), 0);
    assert_eq!(rows("select sum(used_minor) from coverage"), 1_540_280 + 12_500 + 1_050);
    assert_eq!(rows("select sum(reserved_minor) from coverage"), 0);
}

#[tokio::test]
async fn the_insurer_on_mariadb() {
    let server = std::env::var("SUTURE_TEST_MARIADB")
        .expect("SUTURE_TEST_MARIADB is not set: run these tests with compose/test, which starts a server");
    let database = format!("conf_{}_insurer", std::process::id());
    let mut admin = mysql_async::Conn::new(mysql_async::Opts::from_url(&server).unwrap()).await.unwrap();
    admin.query_drop(format!("create database {database}")).await.unwrap();
    let at = format!("{}/{database}", server.trim_end_matches('/'));
    insurer_answers(&open(config("insurer.mariadb.toml"), &at).await).await;

    admin.query_drop(format!("use {database}")).await.unwrap();
    let mut number = async |sql: &str| -> i64 { admin.query_first(sql).await.unwrap().unwrap() };
    assert_eq!(number("select count(*) from claim where state = 'accepted'").await, 3);
    let used = "select cast(sum(used_minor) - (select sum(amount_minor) from claim) as signed) from coverage";
    assert_eq!(number(used).await, 0);
    assert_eq!(number("select cast(sum(reserved_minor) as signed) from coverage").await, 0);
    admin.query_drop(format!("drop database {database}")).await.unwrap();
}

#[tokio::test]
async fn the_surgeon_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("surgeon-log.sqlite");
    let log = open(config("surgeon-log.sqlite.toml"), file.to_str().unwrap()).await;
    let seed = |value: &str, code: &str, bucket| {
        raw(
            &json!({ "practitioner": { "system": "npi", "value": value }, "code": { "system": "sct", "code": code }, "bucket": bucket }),
        )
    };
    let rows = vec![seed("s-1", "1", 1), seed("s-1", "2", 0), seed("s-2", "1", 0)];
    assert_eq!(log.seed("seed_privilege".to_string(), rows.clone()).await, Ok(3), "two people, one privilege");
    assert_eq!(log.seed("seed_privilege".to_string(), rows).await, Ok(0));
    let entry = |case: &str, surgeon: &str, code: &str, start: &str, end: &str| {
        json!({
            "case": case, "practitioner": { "system": "npi", "value": surgeon }, "role": "surgeon",
            "code": { "system": "sct", "code": code },
            "start": format!("2020-03-01T{start}:00Z"), "end": format!("2020-03-01T{end}:00Z"),
        })
    };
    let cases = [
        (with(&entry("a", "s-1", "1", "08:00", "10:00"), "/room", json!("OR 3")), "yes"),
        (entry("a", "s-1", "1", "08:00", "10:00"), "DUPLICATE"),
        (entry("b", "s-1", "1", "09:59", "11:00"), "SURGEON_BUSY"),
        (entry("b", "s-1", "1", "07:00", "12:00"), "SURGEON_BUSY"),
        (entry("b", "s-1", "1", "09:00", "09:00"), "SURGEON_BUSY"),
        (entry("c", "s-1", "1", "10:00", "10:00"), "yes"),
        (entry("d", "s-1", "1", "10:00", "11:00"), "yes"),
        (entry("e", "s-1", "2", "20:00", "21:00"), "NOT_PRIVILEGED"),
        (entry("f", "s-2", "1", "20:00", "21:00"), "NOT_PRIVILEGED"),
        (entry("g", "s-3", "1", "20:00", "21:00"), "NOT_PRIVILEGED"),
        (entry("h", "s-1", "1", "21:00", "20:00"), "statement_failed"),
    ];
    codes(&log, "log_operation", &cases).await;

    // Two at once: the reservation counts before it is decided.
    let (first, second) = (entry("i", "s-1", "1", "15:00", "16:00"), entry("j", "s-1", "1", "15:30", "16:30"));
    let (first, second) = (of("log_operation", 60, &first), of("log_operation", 61, &second));
    let prepared = log.prepare(vec![first.clone(), second]).await.unwrap();
    assert_eq!(prepared[0], yes());
    assert_eq!(code(&prepared[1]), "SURGEON_BUSY");
    assert_eq!(abort(&log, &first).await, Ok(Effect::Finished));
    let rows = |sql: &str| Connection::open(&file).unwrap().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(rows("select count(*) from log_entry"), 3);
    assert_eq!(rows("select count(*) from log_entry where state = 'logged'"), 3);
}

#[tokio::test]
async fn hospital_and_insurer_on_postgres() {
    let server = std::env::var("SUTURE_TEST_POSTGRES")
        .expect("SUTURE_TEST_POSTGRES is not set: run these tests with compose/test, which starts a server");
    let (base, _) = server.rsplit_once('/').expect("a URL with a database");
    let connect = async |url: String| {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    };
    let admin = connect(server.clone()).await;
    let database = |name: &str| format!("conf_{}_{name}", std::process::id());
    for name in ["hospital", "insurer"] {
        admin.batch_execute(&format!("create database {}", database(name))).await.unwrap();
    }
    let at = |name: &str| format!("{base}/{}", database(name));

    let hospital = open(config("hospital.postgres.toml"), &at("hospital")).await;
    hospital_answers(&hospital).await;
    let insurer = open(config("insurer.postgres.toml"), &at("insurer")).await;
    insurer_answers(&insurer).await;

    let number =
        async |name: &str, sql: &str| -> i64 { connect(at(name)).await.query_one(sql, &[]).await.unwrap().get(0) };
    assert_eq!(number("hospital", "select count(*) from surgery s join encounter e using (case_id, txid)").await, 3);
    assert_eq!(number("insurer", "select count(*) from claim").await, 3);
    let used = "select (sum(used_minor) - (select sum(amount_minor) from claim))::bigint from coverage";
    assert_eq!(number("insurer", used).await, 0);

    drop((hospital, insurer));
    for name in ["hospital", "insurer"] {
        admin.batch_execute(&format!("drop database {} with (force)", database(name))).await.unwrap();
    }
}
