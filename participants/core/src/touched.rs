//! What a statement touches, read from its text: which tables, with which rights, and which locks a query takes.
//!
//! Databases tell this only to who already has the rights, and rights must be granted before. So this is a reader of words,
//! not of SQL: of what is named behind FROM, JOIN, INTO, UPDATE and USING it says too much rather than too little, and whoever uses it
//! leaves out what is no table of the database.

use std::collections::{BTreeMap, BTreeSet};

use crate::sql::token_length;

/// What a role must be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs)]
pub enum Right {
    Select,
    Insert,
    Update,
    Delete,
}

/// A lock that a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadLock {
    /// `for share`, `lock in share mode`.
    Shared,
    /// `for update`.
    Exclusive,
}

impl Right {
    /// As it stands in a GRANT.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// The tables that a statement may touch, as they are written there, and the rights that it needs on each.
pub fn rights(sql: &str) -> BTreeMap<String, BTreeSet<Right>> {
    let words = words(sql);
    let is = |at: usize, word: &str| words.get(at).is_some_and(|found| found.eq_ignore_ascii_case(word));
    let before = |at: usize, word: &str| at > 0 && is(at - 1, word);
    // A name for a query of the statement's own: `with name as (`.
    let own = |name: &str| (0..words.len()).any(|at| is(at, name) && is(at + 1, "as") && is(at + 2, "("));
    let mut rights: BTreeMap<String, BTreeSet<Right>> = BTreeMap::new();
    let mut changed = None;
    for at in 0..words.len() {
        let needs: &[Right] = match words[at].to_ascii_lowercase().as_str() {
            "into" => &[Right::Insert],
            // `on conflict do update`, `on duplicate key update`: of the table that is inserted into.
            "update" if before(at, "do") || before(at, "key") => {
                if let Some(table) = &changed {
                    rights.entry(String::clone(table)).or_default().extend([Right::Select, Right::Update]);
                }
                continue;
            }
            "update" if before(at, "for") => continue,
            "update" => &[Right::Select, Right::Update],
            "from" if before(at, "delete") => &[Right::Select, Right::Delete],
            "from" if before(at, "distinct") => continue,
            "from" | "join" | "using" => &[Right::Select],
            _ => continue,
        };
        let mut name_at = at + 1;
        while is(name_at, "only") || is(name_at, "lateral") || is(name_at, "ignore") {
            name_at += 1;
        }
        for table in names(&words, name_at, words[at].eq_ignore_ascii_case("from")) {
            if !own(&table) {
                rights.entry(table.clone()).or_default().extend(needs);
                if needs.contains(&Right::Insert) {
                    changed = Some(table);
                }
            }
        }
    }
    // A lock is a change of a row.
    if read_lock(sql).is_some() {
        for needs in rights.values_mut() {
            needs.insert(Right::Update);
        }
    }
    rights
}

/// The lock that a query asks for; `None` for what writes, which locks what it writes.
pub fn read_lock(sql: &str) -> Option<ReadLock> {
    let words: Vec<String> = words(sql).iter().map(|word| word.to_ascii_lowercase()).collect();
    let stands = |phrase: &[&str]| words.windows(phrase.len()).any(|window| window == phrase);
    let writes = ["insert", "update", "delete", "merge"].iter().any(|verb| words.first().is_some_and(|w| w == verb));
    if writes {
        return None;
    }
    let shared = stands(&["for", "share"]) || stands(&["for", "key", "share"]) || stands(&["in", "share", "mode"]);
    let exclusive = stands(&["for", "update"]) || stands(&["for", "no", "key", "update"]);
    match (shared, exclusive) {
        (true, _) => Some(ReadLock::Shared),
        (false, true) => Some(ReadLock::Exclusive),
        (false, false) => None,
    }
}

/// The names that begin at a word: one, or with commas between them and aliases behind.
fn names(words: &[&str], mut at: usize, many: bool) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(name) = words.get(at).filter(|word| is_name(word)) {
        let mut name = (*name).to_string();
        while words.get(at + 1) == Some(&".") && words.get(at + 2).is_some_and(|word| is_name(word)) {
            name = format!("{name}.{}", words[at + 2]);
            at += 2;
        }
        // A function that answers rows.
        let is_called = words.get(at + 1) == Some(&"(") && many;
        if !is_called {
            names.push(name);
        }
        // Behind an alias, if there is one.
        let comma = (at + 1..at + 4).find(|at| words.get(*at) == Some(&","));
        match comma {
            Some(comma) if many && words[at + 1..comma].iter().all(|word| is_name(word)) => at = comma + 1,
            _ => break,
        }
    }
    names
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '"')
}

/// The words of a statement: names (quoted ones with their quotes) and single signs. Texts and comments are passed over.
fn words(sql: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '\'' | '"' | '-' | '/' => token_length(rest, c).unwrap_or(rest.len()),
            _ if c.is_alphanumeric() || c == '_' => {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            _ => c.len_utf8(),
        };
        let (word, behind) = rest.split_at(length);
        let is_comment = word.starts_with("--") || word.starts_with("/*");
        if !is_comment && c != '\'' && !c.is_whitespace() {
            words.push(word);
        }
        rest = behind;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(sql: &str) -> String {
        let table = |(table, needs): (String, BTreeSet<Right>)| {
            let needs: Vec<_> = needs.into_iter().map(Right::as_str).collect();
            format!("{table}: {}", needs.join(" "))
        };
        rights(sql).into_iter().map(table).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_statement_tells_its_tables_and_rights() {
        let cases = [
            ("select 1 from patient where id = $1 for share", "patient: select update"),
            ("insert into bed_log (id, a) values ('from x', $1)", "bed_log: insert"),
            ("insert into a select * from b on conflict do nothing", "a: insert; b: select"),
            ("insert into a (x) values (1) on conflict (x) do update set x = 2", "a: select insert update"),
            ("insert into a (x) values (1) on duplicate key update x = 2", "a: select insert update"),
            (
                "update account set held = held - i.amount from item i where i.txid = ?1",
                "account: select update; item: select",
            ),
            (
                "update bed set patient = (select value from patient p where p.id = $1)",
                "bed: select update; patient: select",
            ),
            ("delete from only ward.bed where txid = $1", "ward.bed: select delete"),
            (
                "with free as (select * from bed) update bed set x = 1 where id in (select id from free)",
                "bed: select update",
            ),
            ("select 1 where a is distinct from b -- from c\n /* from d */", ""),
            ("select 1 from a x, b as y, c where true", "a: select; b: select; c: select"),
            ("select 1 from generate_series(1, 2) g join \"Bed\" on true", "\"Bed\": select"),
            ("select 1 where exists (select 1 from coverage where member = $1)", "coverage: select"),
            ("select 1 from a order by x, y", "a: select"),
            ("select 1 from f(a, b) g", ""),
            ("select 1 from a for update nowait", "a: select update"),
            ("select 1 from a join lateral b on true", "a: select; b: select"),
            ("update ignore a set b = 2 - c", "a: select update"),
            ("insert into a select b, c from db.ward.bed", "a: insert; db.ward.bed: select"),
            ("select 1 from a.", "a: select"),
            ("select 'it''s from b', \"from c\" from \"a \"\" b\"", "\"a \"\" b\": select"),
            ("select 4 / b - c from z\u{e4}hler_1 /*/ from d */ -- from e", "z\u{e4}hler_1: select"),
        ];
        for (sql, expected) in cases {
            assert_eq!(said(sql), expected, "{sql}");
        }
    }

    #[test]
    fn a_lock_is_told_from_a_change() {
        let cases = [
            ("select 1 from a for update", Some(ReadLock::Exclusive)),
            ("select 1 from a FOR UPDATE nowait", Some(ReadLock::Exclusive)),
            ("select 1 from a lock in share mode", Some(ReadLock::Shared)),
            ("with b as (select 1 from a for share) select 1 from b", Some(ReadLock::Shared)),
            ("select 'for update' from a", None),
            ("update a set b = 1 where c = (select d from e for update)", None),
            ("insert into a values (1) on conflict do update set b = 1", None),
        ];
        for (sql, expected) in cases {
            assert_eq!(read_lock(sql), expected, "{sql}");
        }
    }
}
