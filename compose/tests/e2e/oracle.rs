//! What must become of each event, computed from events and seeds alone: an implementation of the rules and the seeds in
//! `compose/config` that shares nothing with the program but the words.
//!
//! A case's registers depend on no other case, with one exception: two cases of one surgeon at the same time, where
//! whoever comes first wins. Those are [`Case::rivals`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest, Sha256};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::feed::{Place, Sample};
use crate::logs::Logs;
use crate::rows::Rows;

const SURGERY: [&str; 13] = [
    "11466000",
    "22523008",
    "43075005",
    "80146002",
    "88039007",
    "90470006",
    "232717009",
    "274031008",
    "415070008",
    "418824004",
    "429609002",
    "433112001",
    "609588000",
];
const AFTERCARE: [&str; 2] = ["387685009", "699253003"];
const RECORD_NUMBERS: &str = "http://hospital.smarthealthit.org";
const NPI: &str = "http://hl7.org/fhir/sid/us-npi";

/// How far procedures may lie outside of their encounter.
const SLACK: Duration = Duration::hours(5760);

/// What must become of an event.
#[derive(Debug)]
pub enum Expected {
    /// Ingest rejects it, with this code.
    Rejected(&'static str),
    /// It becomes a transaction.
    Case(Box<Case>),
}

/// A transaction.
#[derive(Debug)]
pub struct Case {
    /// The encounter.
    pub number: String,
    /// The patient's medical record number.
    pub patient: String,
    /// In the order of the request.
    pub participants: Vec<&'static str>,
    /// Who must say no, and why.
    pub noes: BTreeMap<&'static str, &'static str>,
    /// Which other events ask for the same surgeon at the same time.
    pub rivals: BTreeSet<usize>,
    claim: Option<Claim>,
    surgeon: (String, String),
    start: OffsetDateTime,
    end: OffsetDateTime,
}

#[derive(Debug)]
struct Claim {
    id: String,
    total_minor: i64,
}

impl Case {
    /// Whether it commits whatever else happens.
    pub fn must_commit(&self) -> bool {
        self.noes.is_empty() && self.rivals.is_empty()
    }
}

/// What must become of each of these events, when all of them, and nothing else, are fed and seeded from.
pub fn expect(samples: &[Sample]) -> Vec<Expected> {
    expect_of(samples, samples)
}

/// The same, when only some of those that were seeded from are fed.
pub fn expect_of(samples: &[Sample], seeded: &[Sample]) -> Vec<Expected> {
    let coverages = Coverages::seeded(seeded);
    let mut expected: Vec<Expected> = samples.iter().map(|sample| expect_one(&sample.event, &coverages)).collect();
    let mut pairs = Vec::new();
    for (a, one) in expected.iter().enumerate() {
        for (b, other) in expected.iter().enumerate().skip(a + 1) {
            if let (Expected::Case(one), Expected::Case(other)) = (one, other)
                && one.competes_with(other)
            {
                pairs.extend([(a, b), (b, a)]);
            }
        }
    }
    for (a, b) in pairs {
        if let Expected::Case(case) = &mut expected[a] {
            case.rivals.insert(b);
        }
    }
    expected
}

/// Whether this surgery commits in all three databases when it is the only one.
pub fn commits_in_all_three(sample: &Sample, seeded: &[Sample]) -> bool {
    let Expected::Case(case) = &expect_of(std::slice::from_ref(sample), seeded)[0] else { return false };
    case.must_commit() && case.participants.len() == 3
}

/// The rows are those that must be there and no others. Holds after kills too, as long as nothing expired.
pub fn verify_rows(expected: &[Expected], rows: &Rows) {
    let (hospital, surgeon_log, insurer) = (rows.of("hospital"), rows.of("surgeon-log"), rows.of("insurer"));
    let number = |row: &crate::rows::BusinessRow| row.fields["case_id"].as_str().expect("text").to_string();
    let recorded: BTreeSet<String> = hospital.table("encounter").map(number).collect();
    let surgeries: BTreeSet<String> = hospital.table("surgery").map(number).collect();
    assert_eq!(recorded, surgeries, "a surgery for each encounter");
    let logged = surgeon_log.table("log_entry").count();
    assert_eq!(logged, recorded.len(), "an operation logged for each encounter");
    let claimed: BTreeMap<&str, i64> = insurer
        .table("claim")
        .map(|row| {
            (row.fields["claim_id"].as_str().expect("text"), row.fields["amount_minor"].as_i64().expect("minor"))
        })
        .collect();
    let mut claims = 0;
    for (index, case) in cases(expected) {
        let is_recorded = recorded.contains(&case.number);
        if case.must_commit() {
            assert!(is_recorded, "event {index} must commit and did not: {case:?}");
        } else if case.noes.is_empty() {
            let winners = case.rivals.iter().filter(
                |rival| matches!(&expected[**rival], Expected::Case(rival) if recorded.contains(&rival.number)),
            );
            assert_eq!(
                winners.count() + usize::from(is_recorded),
                1,
                "of event {index} and its rivals one wins: {case:?}"
            );
        } else {
            assert!(!is_recorded, "event {index} must be refused and was committed: {case:?}");
        }
        if let Some(claim) = case.claim.as_ref().filter(|_| is_recorded) {
            assert_eq!(claimed.get(claim.id.as_str()), Some(&claim.total_minor), "the claim of event {index}");
            claims += 1;
        }
    }
    assert_eq!(claims, claimed.len(), "claims of what is recorded, and no others");
    let known: BTreeSet<String> = cases(expected).map(|(_, case)| case.number.clone()).collect();
    assert!(recorded.is_subset(&known), "rows of no event");
}

/// Every event that was fed once ended as it must, by its registers: each participant that must refuse does so with its
/// reason, and nobody else. Only where nobody was killed or stopped.
pub fn verify_registers(expected: &[Expected], logs: &Logs, fed: &[Place]) {
    let (rejections, stories) = (logs.rejections(), logs.stories());
    for (index, (expected, place)) in expected.iter().zip(fed).enumerate() {
        let asked: Vec<_> = stories.values().filter(|story| story.source().as_ref() == Some(place)).collect();
        match expected {
            Expected::Rejected(code) => {
                assert_eq!(rejections.get(place), Some(&vec![(*code).to_string()]), "event {index}");
                assert!(asked.is_empty(), "event {index} was rejected and asked for");
            }
            Expected::Case(case) => {
                let [story] = asked.as_slice() else { panic!("event {index} was asked for {} times", asked.len()) };
                assert_eq!(story.named(), case.participants, "event {index}");
                verify_noes(&format!("event {index}, {}", story.txid), case, &story.noes());
            }
        }
    }
}

/// Whoever must refuse does so with his reason, unless he had read the abort before he was asked. Nobody else refuses.
fn verify_noes(what: &str, case: &Case, noes: &BTreeMap<String, String>) {
    let mut decided = false;
    for (who, code) in noes {
        let is_busy = who == "surgeon-log" && code == "SURGEON_BUSY" && !case.rivals.is_empty();
        let is_expected = case.noes.get(who.as_str()).is_some_and(|expected| expected == code);
        assert!(is_busy || is_expected || code == "aborted", "{what}: {who} said {code}; {case:?}");
        decided |= is_busy || is_expected;
    }
    assert!(decided || noes.is_empty(), "{what}: refused without a reason: {noes:?}");
    let yes: Vec<_> = case.noes.keys().filter(|who| !noes.contains_key(**who)).collect();
    assert!(yes.is_empty(), "{what}: {yes:?} did not refuse; {case:?}");
}

/// The cases, with the numbers of their events.
pub fn cases(expected: &[Expected]) -> impl Iterator<Item = (usize, &Case)> {
    expected.iter().enumerate().filter_map(|(index, expected)| match expected {
        Expected::Case(case) => Some((index, &**case)),
        Expected::Rejected(_) => None,
    })
}

impl Case {
    /// Whoever is not privileged takes nobody's time.
    fn competes_with(&self, other: &Self) -> bool {
        let takes_time = |case: &Self| !case.noes.contains_key("surgeon-log");
        takes_time(self)
            && takes_time(other)
            && self.surgeon == other.surgeon
            && self.start < other.end
            && self.end > other.start
    }
}

/// The coverages that the seeds insert, by member (record number and payer) and currency.
struct Coverages(BTreeMap<(String, String, String), Vec<Coverage>>);

struct Coverage {
    start: String,
    end: Option<String>,
    limit_minor: i64,
}

impl Coverages {
    fn seeded(samples: &[Sample]) -> Self {
        let mut coverages: BTreeMap<_, Vec<Coverage>> = BTreeMap::new();
        for event in samples.iter().map(|sample| &sample.event) {
            let bundle = Bundle(event);
            if bundle.operation(&SURGERY).is_none() {
                continue;
            }
            let Some(coverage) = bundle.coverage() else { continue };
            let Ok(payer) = bundle.payer(coverage) else { continue };
            let number = bundle.record_number();
            if payer == "no_insurance" || bucket(&["coverage-1", RECORD_NUMBERS, &number, &payer]) == 0 {
                continue;
            }
            let day = |time: &Value| time.as_str().map(|time| time[..10].to_string());
            let currency = text(&bundle.claim()["total"]["currency"]).to_string();
            let is_exhausted = bucket(&["limit-9", RECORD_NUMBERS, &number, &payer]) == 0;
            let of_member = coverages.entry((number, payer, currency)).or_default();
            let start = day(&coverage["period"]["start"]).unwrap_or_else(|| "1900-01-01".to_string());
            if of_member.iter().all(|known| known.start != start) {
                let end = day(&coverage["period"]["end"]);
                of_member.push(Coverage { start, end, limit_minor: if is_exhausted { 100 } else { 1_000_000_000 } });
            }
        }
        Self(coverages)
    }

    /// Of all that hold on a day the one that began last.
    fn on(&self, member: &(String, String, String), day: &str) -> Option<&Coverage> {
        let holds = |coverage: &&Coverage| {
            coverage.start.as_str() <= day && coverage.end.as_deref().is_none_or(|end| end >= day)
        };
        self.0.get(member)?.iter().filter(holds).max_by_key(|coverage| &coverage.start)
    }
}

fn expect_one(event: &Value, coverages: &Coverages) -> Expected {
    let bundle = Bundle(event);
    let encounter = bundle.encounter();
    assert_eq!((text(&event["type"]), text(&encounter["status"])), ("transaction", "finished"));
    let (operation, is_billed) = match bundle.operation(&SURGERY) {
        Some(operation) => (operation, true),
        None => (bundle.operation(&AFTERCARE).expect("every sample has one or the other"), false),
    };
    let number = bundle.record_number();
    let (start, end) = (instant(&encounter["period"]["start"]), instant(&encounter["period"]["end"]));
    let (first_start, last_end) = bundle.procedures_span();
    let (surgeon, code) = (bundle.surgeon(operation), text(&operation["code"]["coding"][0]["code"]));

    let mut noes = BTreeMap::new();
    let patient = bundle.patient();
    if bucket(&["patient-16", RECORD_NUMBERS, &number]) == 0 {
        noes.insert("hospital", "PATIENT_UNKNOWN");
    } else if !patient["deceasedDateTime"].is_null() && instant(&patient["deceasedDateTime"]) < start {
        noes.insert("hospital", "PATIENT_DECEASED");
    } else if start > end || first_start > last_end || first_start < start - SLACK || last_end > end + SLACK {
        noes.insert("hospital", "ENCOUNTER_MISMATCH");
    }
    if bucket(&["privilege-4", NPI, &surgeon, code]) == 0 {
        noes.insert("surgeon-log", "NOT_PRIVILEGED");
    }
    let (mut participants, mut claim) = (vec!["hospital", "surgeon-log"], None);
    if is_billed {
        let coverage = bundle.coverage().expect("every billed sample names a coverage");
        let payer = match bundle.payer(coverage) {
            Ok(payer) => payer,
            Err(code) => return Expected::Rejected(code),
        };
        let total = &bundle.claim()["total"];
        let total_minor = minor(&total["value"]);
        let member = (number, payer, text(&total["currency"]).to_string());
        let items = bundle.claim()["item"].as_array().map(Vec::as_slice).unwrap_or_default();
        let nets: i64 =
            items.iter().filter(|item| !item["net"].is_null()).map(|item| minor(&item["net"]["value"])).sum();
        match coverages.on(&member, &text(&encounter["period"]["start"])[..10]) {
            None => drop(noes.insert("insurer", "NO_COVERAGE")),
            Some(_) if nets > total_minor => drop(noes.insert("insurer", "AMOUNT")),
            Some(coverage) if total_minor > coverage.limit_minor => drop(noes.insert("insurer", "LIMIT")),
            Some(_) => {}
        }
        participants.push("insurer");
        claim = Some(Claim { id: text(&bundle.claim()["id"]).to_string(), total_minor });
    }
    Expected::Case(Box::new(Case {
        number: text(&encounter["id"]).to_string(),
        patient: bundle.record_number(),
        participants,
        noes,
        rivals: BTreeSet::new(),
        claim,
        surgeon: (NPI.to_string(), surgeon),
        start: first_start,
        end: last_end,
    }))
}

/// A FHIR transaction Bundle.
struct Bundle<'a>(&'a Value);

impl<'a> Bundle<'a> {
    fn all(&self, kind: &'static str) -> impl Iterator<Item = &'a Value> {
        let entries = self.0["entry"].as_array().expect("entries").iter().map(|entry| &entry["resource"]);
        entries.filter(move |resource| resource["resourceType"] == kind)
    }

    fn encounter(&self) -> &'a Value {
        let all: Vec<_> = self.all("Encounter").collect();
        let [encounter] = all.as_slice() else { panic!("{} encounters", all.len()) };
        encounter
    }

    fn claim(&self) -> &'a Value {
        self.institutional("Claim").expect("an institutional claim")
    }

    fn institutional(&self, kind: &'static str) -> Option<&'a Value> {
        self.all(kind).find(|claim| {
            let codings = claim["type"]["coding"].as_array().map(Vec::as_slice).unwrap_or_default();
            codings.iter().any(|coding| coding["code"] == "institutional")
        })
    }

    /// The completed procedure on a list that began first.
    fn operation(&self, codes: &[&str]) -> Option<&'a Value> {
        let is_listed = |procedure: &&Value| {
            procedure["status"] == "completed" && codes.contains(&text(&procedure["code"]["coding"][0]["code"]))
        };
        let began = |procedure: &&Value| {
            let (start, _) = span(procedure);
            (start, text(&procedure["code"]["coding"][0]["code"]).to_string(), text(&procedure["id"]).to_string())
        };
        self.all("Procedure").filter(is_listed).min_by_key(began)
    }

    fn procedures_span(&self) -> (OffsetDateTime, OffsetDateTime) {
        let (starts, ends): (Vec<_>, Vec<_>) = self.all("Procedure").map(span).unzip();
        (starts.into_iter().min().expect("a procedure"), ends.into_iter().max().expect("a procedure"))
    }

    fn patient(&self) -> &'a Value {
        self.lead(&self.encounter()["subject"], self.encounter()).expect("the patient")
    }

    /// The patient's medical record number.
    fn record_number(&self) -> String {
        let identifiers = self.patient()["identifier"].as_array().expect("identifiers").iter();
        let wanted = identifiers.filter(|identifier| {
            let codings = identifier["type"]["coding"].as_array().map(Vec::as_slice).unwrap_or_default();
            identifier["system"] == RECORD_NUMBERS && codings.iter().any(|coding| coding["code"] == "MR")
        });
        let numbers: BTreeSet<&str> = wanted.map(|identifier| text(&identifier["value"])).collect();
        assert_eq!(numbers.len(), 1, "{numbers:?}");
        numbers.into_iter().next().expect("one").to_string()
    }

    /// Who has the function surgeon (SNOMED CT 304292004); else who performed it; else who led the case.
    fn surgeon(&self, operation: &'a Value) -> String {
        let list = |value: &'a Value| value.as_array().map(Vec::as_slice).unwrap_or_default();
        let performers = list(&operation["performer"]).iter();
        let is_surgeon = |performer: &&Value| {
            let codings = performer["function"]["coding"].as_array().map(Vec::as_slice).unwrap_or_default();
            codings.iter().any(|coding| coding["code"] == "304292004")
        };
        let surgeons = performers.clone().filter(is_surgeon).map(|performer| &performer["actor"]);
        let others = performers.map(|performer| &performer["actor"]);
        let led = list(&self.encounter()["participant"]).iter().map(|participant| &participant["individual"]);
        for reference in surgeons.chain(others).chain(led) {
            // Another system's own number in the reference itself.
            let own = &reference["identifier"];
            if own["system"] == NPI {
                return text(&own["value"]).to_string();
            }
            let literal = reference["reference"].as_str().unwrap_or_default();
            if let Some(number) = literal.strip_prefix(&format!("Practitioner?identifier={NPI}|")) {
                return number.to_string();
            }
            if let Some(practitioner) = self.lead(reference, operation) {
                let identifiers = practitioner["identifier"].as_array().expect("identifiers");
                let npi = identifiers.iter().find(|identifier| identifier["system"] == NPI).expect("an NPI");
                return text(&npi["value"]).to_string();
            }
        }
        panic!("no surgeon")
    }

    /// What the claim names, else what its statement names.
    fn coverage(&self) -> Option<&'a Value> {
        let documents = [self.institutional("Claim"), self.institutional("ExplanationOfBenefit")];
        for document in documents.into_iter().flatten() {
            for insurance in document["insurance"].as_array().map(Vec::as_slice).unwrap_or_default() {
                if let Some(coverage) = self.lead(&insurance["coverage"], document) {
                    return Some(coverage);
                }
            }
        }
        None
    }

    fn payer(&self, coverage: &'a Value) -> Result<String, &'static str> {
        let payors = coverage["payor"].as_array().map(Vec::as_slice).unwrap_or_default();
        if let Some(name) = payors.iter().find_map(|payor| payor["display"].as_str().filter(|name| !name.is_empty())) {
            return Ok(name.to_string());
        }
        let organization = self.lead(&payors[0], coverage).filter(|payer| payer["resourceType"] == "Organization");
        organization.map(|payer| text(&payer["name"]).to_string()).ok_or("unresolved_reference")
    }

    /// What a reference leads to: something contained in its owner, a full URL, or a type and an id.
    fn lead(&self, reference: &Value, owner: &'a Value) -> Option<&'a Value> {
        let literal = reference["reference"].as_str()?;
        if let Some(id) = literal.strip_prefix('#') {
            return owner["contained"].as_array()?.iter().find(|resource| resource["id"] == id);
        }
        let entries = self.0["entry"].as_array().expect("entries");
        let is_it = |entry: &&Value| {
            let resource = &entry["resource"];
            let name = format!("{}/{}", text(&resource["resourceType"]), resource["id"].as_str().unwrap_or_default());
            entry["fullUrl"] == literal || name == literal
        };
        entries.iter().find(is_it).map(|entry| &entry["resource"])
    }
}

/// When a procedure began and ended.
fn span(procedure: &Value) -> (OffsetDateTime, OffsetDateTime) {
    let period = &procedure["performedPeriod"];
    match period.is_null() {
        false => (instant(&period["start"]), instant(&period["end"])),
        true => (instant(&procedure["performedDateTime"]), instant(&procedure["performedDateTime"])),
    }
}

/// As `compose/config/seeds.toml` says: SHA-256 of salt and parts, its first four bytes, big endian, modulo 20.
fn bucket(parts: &[&str]) -> u32 {
    let digest = Sha256::digest(parts.join("|"));
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % 20
}

fn instant(time: &Value) -> OffsetDateTime {
    let time = text(time);
    OffsetDateTime::parse(time, &Rfc3339).unwrap_or_else(|error| panic!("{time}: {error}"))
}

/// An amount of a currency with two decimals, digit by digit.
fn minor(amount: &Value) -> i64 {
    let digits = amount.to_string();
    let (whole, decimals) = digits.split_once('.').unwrap_or((&digits, ""));
    let decimals = decimals.trim_end_matches('0');
    assert!(decimals.len() <= 2, "{digits}");
    format!("{whole}{decimals:0<2}").parse().unwrap_or_else(|error| panic!("{digits}: {error}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}
