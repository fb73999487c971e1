//! Files of operations and seeds, as they stand in a participant's configuration: compiled or refused for each database and mode.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::to_raw_value;
use suture_contract::ids::Txid;
use suture_participants_core::operations::{
    Mode, Operation, OperationConfig, SeedConfig, Step, compile_operations, compile_seeds, noted_operation,
};
use suture_participants_core::sql::{Dialect, Numbered, number_placeholders};
use suture_participants_core::touched::{read_lock, rights};

use crate::met::Met;

/// The part of a participant's file that is its own.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    operation: BTreeMap<String, OperationConfig>,
    #[serde(default)]
    seed: BTreeMap<String, SeedConfig>,
}

/// Compiles a file; what is no TOML is taken for a statement, and for what a ledger's row has noted.
pub fn check(input: &[u8]) -> Met {
    let mut met = Met::default();
    let Ok(text) = std::str::from_utf8(input) else { return met };
    statement(text, &mut met);
    let Ok(file) = toml::from_str::<File>(text) else { return met };
    for dialect in [Dialect::Sqlite, Dialect::Postgres, Dialect::Mariadb] {
        for mode in [Mode::Xa, Mode::Reserve] {
            match compile_operations(&file.operation, mode, dialect) {
                Ok(operations) => {
                    operations.values().for_each(|operation| works(operation, &operations, dialect, &mut met))
                }
                Err(misconfigured) => met.text(misconfigured.problem),
            }
        }
        match compile_seeds(&file.seed, dialect) {
            Ok(seeds) => seeds.values().flat_map(|seed| &seed.steps).for_each(|step| is_numbered(step, dialect)),
            Err(misconfigured) => met.text(misconfigured.problem),
        }
    }
    met
}

fn works(operation: &Operation, all: &BTreeMap<String, Operation>, dialect: Dialect, met: &mut Met) {
    for step in operation.prepare.iter().chain(&operation.confirm).chain(&operation.cancel) {
        is_numbered(step, dialect);
        assert!(operation.parameters_of(step).len() <= step.binds.len());
    }
    if !operation.name.contains('#') {
        assert_eq!(noted_operation(all, &operation.noted()), Ok(operation));
    }
    for noted in [format!("{}x", operation.name), format!("{}#0123456789abcdef", operation.name)] {
        if let Err(none) = noted_operation(all, &noted) {
            met.variant(&none);
        }
    }
    let txid: Txid = "k3f9q-3-1042".parse().expect("a valid name");
    let payload = to_raw_value(&operation.sample_payload()).expect("a JSON value always serialises");
    if let Ok(values) = operation.bind(&txid, &payload) {
        let all = operation.prepare.iter().flat_map(|step| step.values(&values));
        assert_eq!(all.count(), operation.prepare.iter().map(|step| step.binds.len()).sum::<usize>());
    }
}

/// Each placeholder has a value, and MariaDB's stand where it is told.
fn is_numbered(step: &Step, dialect: Dialect) {
    assert_eq!(step.binds.len(), step.kinds.len());
    if dialect == Dialect::Mariadb {
        assert!(step.marks.iter().all(|at| step.sql.as_bytes().get(*at) == Some(&b'?')));
        assert_eq!(step.marks.len(), step.binds.len());
    }
}

/// With the names back in their places it is the template again.
fn statement(text: &str, met: &mut Met) {
    rights(text);
    read_lock(text);
    for dialect in [Dialect::Sqlite, Dialect::Postgres] {
        match (number_placeholders(text, dialect), number_placeholders(text, Dialect::Mariadb)) {
            (Ok(_), Ok(named)) => {
                assert!(text.contains(&with_names(&named)), "the template has become another statement");
            }
            (Err(problem), Err(other)) => {
                assert_eq!(problem, other);
                met.text(problem);
            }
            _ => panic!("one database takes it, and another does not"),
        }
    }
}

fn with_names(Numbered { sql, names, marks }: &Numbered) -> String {
    let mut text = sql.clone();
    for (at, name) in marks.iter().zip(names).rev() {
        text.replace_range(*at..*at + 1, &format!(":{name}"));
    }
    text
}
