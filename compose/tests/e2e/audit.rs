//! `suture audit` while everything runs, against rows counted by hand, and against harm that was done by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::feed::samples;
use crate::logs::{Logs, Story};
use crate::rows;
use crate::world::{Options, PARTICIPANTS, World};

/// How many audits run while events come without end, and how many events come at once.
const AUDITS_UNDER_LOAD: usize = 3;
const CHUNK: usize = 20;

#[test]
fn an_audit_counts_what_the_databases_hold_and_finds_nothing_while_they_change() {
    let samples = samples();
    let world = World::start(&Options::default());
    let mut crew = world.crew();
    let mut feed = world.feed();
    let (mut fed, mut next) = (Vec::new(), samples.chunks(CHUNK).cycle());
    for _ in 0..AUDITS_UNDER_LOAD {
        let mut command = world.command(&["audit", "--json"]);
        let mut audit = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("suture starts");
        while audit.try_wait().expect("its end").is_none() {
            fed.extend(feed.feed(next.next().expect("without end")));
            world.wait_for_logs("most events have ended", |logs| logs.not_ended(&fed).len() <= CHUNK);
        }
        let audited = of_output(&audit.wait_with_output().expect("its output"), 0);
        assert_eq!(findings(&audited), BTreeSet::new(), "while everything runs");
    }
    world.wait_for_the_end(&fed);

    let audited = audit(&world, &[], 0);
    let rows = world.rows();
    let (mut committed, mut finished) = (BTreeSet::new(), BTreeSet::new());
    for participant in PARTICIPANTS {
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        for (txid, row) in &rows.of(participant).ledger {
            *states.entry(&row.state).or_default() += 1;
            finished.insert(txid);
            if row.state == "committed" {
                committed.insert(txid);
            }
        }
        let told: BTreeMap<&str, u64> = audited["ledgers"][participant]["rows"]
            .as_object()
            .expect("all rows were read")
            .iter()
            .map(|(state, count)| (state.as_str(), count.as_u64().expect("a number")))
            .collect();
        assert_eq!(told, states, "{participant}");
    }
    assert!(committed.len() > 50 && finished.len() > committed.len(), "some of both");
    assert_eq!(audited["transactions"], finished.len());
    assert_eq!(audited["committed"], committed.len());
    assert_eq!(audited["aborted"], finished.len() - committed.len());
    for none in ["open", "in_doubt", "not_applied", "settled", "wrong", "older", "overdue"] {
        assert_eq!(audited[none], 0, "{none}");
    }
    let printed = world.suture(&["audit"]);
    let printed = String::from_utf8_lossy(&printed.stdout).to_string();
    let counted = format!("committed everywhere {:>9}", committed.len());
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(squeezed(&printed).contains(&squeezed(&counted)), "{printed}");

    // One alone, and none.
    let one = committed.first().expect("one");
    let audited = audit(&world, &["--txid", one], 0);
    assert_eq!((&audited["transactions"], &audited["committed"]), (&1.into(), &1.into()));
    assert_eq!(audit(&world, &["--since", "0s"], 0)["transactions"], 0);
    assert_eq!(audit(&world, &["--since", "1h"], 0)["transactions"], finished.len());
    crew.terminate();
}

#[test]
fn an_audit_finds_what_was_done_by_hand() {
    let samples = samples();
    let world = World::start(&Options::default());
    let mut crew = world.crew();
    let mut feed = world.feed();
    let fed = feed.feed(&samples[..60]);
    world.wait_for_the_end(&fed);
    let (hospital, letters) = (world.postgres("hospital").to_string(), world.follower.letters());
    let sql = |sql: &str| rows::execute(&hospital, sql).unwrap();
    assert_eq!(findings(&audit(&world, &[], 0)), BTreeSet::new());

    // A branch of somebody else is counted, and not touched.
    sql("begin; create table foreign_work (id text); prepare transaction 'somebody else'");
    let audited = audit(&world, &[], 0);
    assert_eq!(audited["ledgers"]["hospital"]["foreign_branches"], 1);
    assert_eq!(rows::prepared(&hospital), ["somebody else"]);
    sql("rollback prepared 'somebody else'");

    // An orphan with our name. What is printed undoes it.
    let orphan = format!("{letters}-0-1000000");
    let gid = format!("{orphan}/{}/hospital/0123456789abcdef", world.prefix);
    sql(&format!("begin; create table orphan_work (id text); prepare transaction '{gid}'"));
    let audited = audit(&world, &[], 1);
    let mut expected = BTreeSet::from([found("orphan", "no_request", &orphan, "hospital")]);
    assert_eq!(findings(&audited), expected);
    let remedy = audited["findings"][0]["remedy"].as_str().expect("a remedy");
    let (_, command) = remedy.split_once(": ").expect("a command");
    assert_eq!(command, format!("rollback prepared '{gid}'"));
    sql(command);
    assert_eq!(findings(&audit(&world, &[], 0)), BTreeSet::new());

    // In doubt: no finding, unless for too long.
    for process in [&mut crew.insurer, &mut crew.surgeon_log] {
        assert!(process.terminate().success());
    }
    let in_doubt = {
        feed.feed(&samples[60..90]);
        let mut found = None;
        world.wait_for_logs("the hospital is in doubt", |logs| {
            found = logs.open().iter().find(|story| is_in_doubt(story)).map(|story| story.txid.clone());
            found.is_some()
        });
        found.expect("one in doubt")
    };
    let audited = audit(&world, &["--txid", &in_doubt], 0);
    assert_eq!(audited["in_doubt"], 1);
    let [wait] = audited["waits"].as_array().expect("waits").as_slice() else { panic!("{audited}") };
    assert_eq!((&wait["participant"], &wait["waits"]), (&"hospital".into(), &"in_doubt".into()));
    assert_eq!(audit(&world, &["--txid", &in_doubt, "--overdue", "0s"], 1)["overdue"], 1);

    // Rolled back by hand: gone, and lost when all others have committed.
    let gid = rows::prepared(&hospital).into_iter().find(|gid| gid.starts_with(&format!("{in_doubt}/")));
    sql(&format!("rollback prepared '{}'", gid.expect("its branch")));
    expected = [found("lost", "gone", &in_doubt, "hospital")].into();
    assert_eq!(findings(&audit(&world, &[], 1)), expected);
    for process in [&mut crew.insurer, &mut crew.surgeon_log] {
        process.start_again();
    }
    let verdict = |logs: &Logs| logs.stories()[&in_doubt].verdict().map(str::to_string);
    world.wait_for_logs("it is decided", |logs| verdict(logs).is_some());
    assert_eq!(verdict(&world.follower.now()).as_deref(), Some("commit"));
    world.wait_for_logs("all others are decided", |logs| logs.open().is_empty());
    expected = [found("lost", "lost", &in_doubt, "hospital")].into();
    assert_eq!(findings(&audit(&world, &[], 1)), expected);
    assert_eq!(findings(&audit(&world, &["--txid", &in_doubt], 1)), expected);

    // A row deleted by hand.
    let stories = world.follower.to_the_ends().stories();
    let is_victim = |story: &&Story| {
        story.verdict() == Some("commit")
            && story.named().len() == 3
            && story.txid != in_doubt
            && story.shard() != stories[&in_doubt].shard()
    };
    let victims: Vec<&Story> = stories.values().filter(is_victim).take(2).collect();
    let [deleted, contradicted] = victims.as_slice() else { panic!("two others are committed") };
    let delete = format!("delete from suture_ledger where txid = '{}'", deleted.txid);
    rows::execute_on_mariadb(world.mariadb("insurer"), &delete);
    let gone = found("lost", "lost", &deleted.txid, "insurer");
    expected.insert(gone.clone());
    let audited = audit(&world, &[], 1);
    assert_eq!(findings(&audited), expected);
    let remedy =
        audited["findings"].as_array().expect("findings").iter().find(|one| one["about"] == deleted.txid.as_str());
    let remedy = remedy.expect("it is among them")["remedy"].as_str().expect("a remedy");
    let resolve = format!("suture participant insurer resolve {} --as committed --because TEXT", deleted.txid);
    assert!(remedy.starts_with("look first whether its effect is there") && remedy.contains(&resolve), "{remedy}");
    // Nobody has stopped for it; a person's word writes the row again.
    let says = |txid: &str| {
        let words = ["participant", "insurer", "resolve", txid, "--as", "committed", "--because", "its claim is there"];
        world.suture(&words)
    };
    let said = String::from_utf8(says(&deleted.txid).stdout).unwrap();
    assert!(said.contains("the ledger had no commit of it, and no shard had stopped for that"), "{said}");
    assert_eq!(world.rows().of("insurer").state(&deleted.txid), Some("committed"));
    world.wait_for_logs("it is told", |logs| {
        let mut told = logs.topic("outcomes").iter();
        told.any(|entry| entry.text("what") == "resolved" && entry.text("txid") == deleted.txid)
    });
    expected.remove(&gone);
    let audited = audit(&world, &[], 1);
    assert_eq!((findings(&audited), &audited["settled"]), (expected.clone(), &1.into()));
    for (txid, why) in [
        (deleted.txid.clone(), "has said so already (its claim is there)"),
        (contradicted.txid.clone(), "no shard of insurer stopped for that, and its row is there (committed)"),
        (format!("{letters}-0-1000000"), "and the decision log has no decision of it"),
        ("aaaaa-0-1".to_string(), "the requests topic that is there begin with"),
    ] {
        let refused = says(&txid);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(why), "{txid}: {said}");
    }

    // A decision against the one that was carried out.
    for process in crew.all() {
        // The hospital says by its exit code that a shard of it had stopped.
        assert_eq!(process.terminate().success(), process.name() != "hospital");
    }
    let shard = contradicted.shard().expect("a shard");
    let decision = String::from_utf8(contradicted.decisions[0].value.clone().expect("a decision")).unwrap();
    let abort = decision.replace("\"commit\"", "\"abort\"");
    assert_ne!(abort, decision);
    feed.append(&world.topic("decisions"), shard, contradicted.txid.as_bytes(), Some(abort.as_bytes()));
    let logs = found("contradiction", "copies_differ", &contradicted.txid, "");
    expected.insert(logs);
    assert_eq!(findings(&audit(&world, &[], 1)), expected);
    let printed = world.suture(&["audit"]);
    let printed = String::from_utf8_lossy(&printed.stdout).to_string();
    for line in [
        format!(
            "LOST: {in_doubt} at hospital: its decision is commit, and the ledger has no row of that; look first whether its effect is there;"
        ),
        format!("contradiction: {}: the decision log holds decisions of it that are not equal; ", contradicted.txid),
    ] {
        assert!(printed.contains(&line), "{line}\n{printed}");
    }

    // A database that cannot be read is no clean audit.
    let file = world.config_file().parent().expect("a folder").join("participants/hospital.postgres.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        config.replace("url_env = \"SUTURE_HOSPITAL_URL\"", "url = \"postgres://postgres@127.0.0.1:1/x\""),
    )
    .unwrap();
    let output = world.suture(&["audit", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("the database of hospital (127.0.0.1:1/x)"), "{said}");
    fs::write(&file, config).unwrap();
}

/// Runs it, and expects an exit code.
fn audit(world: &World, arguments: &[&str], code: i32) -> Value {
    of_output(&world.suture(&[&["audit", "--json"], arguments].concat()), code)
}

fn of_output(output: &Output, code: i32) -> Value {
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{said}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

/// Kind, what, about what and at whom.
type Finding = (String, String, String, String);

fn found(kind: &str, what: &str, about: &str, participant: &str) -> Finding {
    (kind.to_string(), what.to_string(), about.to_string(), participant.to_string())
}

fn findings(audited: &Value) -> BTreeSet<Finding> {
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_string();
    let findings = audited["findings"].as_array().expect("findings").iter();
    findings.map(|one| (text(one, "kind"), text(one, "what"), text(one, "about"), text(one, "participant"))).collect()
}

/// The hospital has said yes, and the others are away.
fn is_in_doubt(story: &Story) -> bool {
    let vote = story.register("hospital");
    story.named().len() == 3 && story.noes().is_empty() && vote.is_some_and(|vote| vote.text("vote") == "yes")
}
