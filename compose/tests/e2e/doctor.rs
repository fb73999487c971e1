//! What `suture doctor` says of a deployment that is well, of one that is ill, and of one that is mostly down.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::SUTURE;
use crate::rows;
use crate::world::{Options, PARTICIPANTS, World, succeeds};

/// The exit code, and the lines.
fn doctor(world: &World, environment: &[(&str, &str)]) -> (i32, Vec<String>) {
    let output = ask(world, &[], environment);
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_string).collect();
    (output.status.code().unwrap(), lines)
}

fn ask(world: &World, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(SUTURE);
    command.args(["doctor", "--allow-single-broker", "--config"]).arg(world.config_file()).args(arguments);
    command.env("SUTURE_HOSPITAL_URL", world.postgres("hospital")).env("SUTURE_INSURER_URL", world.mariadb("insurer"));
    command.envs(environment.iter().copied()).output().unwrap()
}

/// The line of a subject, whatever its state.
fn line<'a>(lines: &'a [String], subject: &str) -> &'a str {
    let found = lines.iter().find(|line| line.contains(&format!(" {subject}: ")));
    found.unwrap_or_else(|| panic!("no line of {subject} in {lines:#?}"))
}

#[test]
fn a_doctor_sees_what_is_well_what_is_ill_and_what_is_down() {
    let world = World::start(&Options::default());
    for key in ["identity.key", "hash.key"] {
        let file = world.config_file().with_file_name(key);
        fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let mut crew = world.crew();
    let group = |participant: &str| format!("{}.participant.{participant}", world.prefix);
    world.wait_until("all are in their groups", || doctor(&world, &[]).0 == 0);
    let (_, well) = doctor(&world, &[]);
    assert!(well.iter().all(|line| line.starts_with("ok ") || line.contains(" ok, ")), "{well:#?}");
    for participant in PARTICIPANTS {
        for subject in ["settings", "rights", "operations", "ledger", "in doubt", "incidents"] {
            line(&well, &format!("{participant} {subject}"));
        }
        line(&well, &group(participant));
    }
    let document: Value = serde_json::from_slice(&ask(&world, &["--json"], &[]).stdout).unwrap();
    assert_eq!(document["state"], "ok");
    assert_eq!(document["checks"].as_array().unwrap().len(), well.len() - 1, "the last line is a sum");

    // Somebody else's branch, a table that an operation misses, another key, a service that is gone.
    let hospital = world.postgres("hospital");
    let foreign = format!("begin; create table f (a int); prepare transaction 'f-{}'", world.prefix);
    rows::execute(hospital, &foreign).unwrap();
    rows::execute_on_mariadb(
        world.mariadb("insurer"),
        "alter table claim change column code_system other varchar(200)",
    );
    let identity = world.config_file().with_file_name("identity.key");
    let secret = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, "another key of the tests, and no secret").unwrap();
    crew.surgeon_log.terminate();
    let (code, ill) = doctor(&world, &[]);
    assert_eq!(code, 2);
    assert!(line(&ill, "insurer operations").starts_with("BAD "), "{ill:#?}");
    assert!(line(&ill, "hospital ledger").contains("identity_key"), "{ill:#?}");
    assert!(line(&ill, &group("surgeon-log")).contains("nobody serves it"), "{ill:#?}");
    fs::write(&identity, secret).unwrap();
    let (_, ill) = doctor(&world, &[]);
    assert!(line(&ill, "hospital foreign branches").starts_with("warn "), "{ill:#?}");
    rows::execute(hospital, &format!("rollback prepared 'f-{}'", world.prefix)).unwrap();

    // Half of it does not answer, and every line comes all the same, in the same order.
    let nowhere =
        [("SUTURE__KAFKA__BOOTSTRAP", "127.0.0.1:1"), ("SUTURE_HOSPITAL_URL", "postgres://u:canary@127.0.0.1:1/h")];
    let (code, down) = doctor(&world, &nowhere);
    assert_eq!(code, 2);
    assert!(line(&down, "hospital").starts_with("BAD "), "{down:#?}");
    assert!(line(&down, &group("hospital")).starts_with("unknown "), "{down:#?}");
    assert!(line(&down, "insurer settings").starts_with("ok "), "{down:#?}");
    assert!(!down.join("\n").contains("canary"), "a password is told to nobody");
    let topics = |lines: &[String]| {
        let of_topics = lines.iter().filter(|line| line.contains(&format!(" topics        {}.", world.prefix)));
        of_topics.map(|line| line.split_whitespace().nth(2).unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(topics(&down), topics(&well));
}

#[test]
fn a_doctor_sees_what_waits_for_a_person() {
    let world = World::start(&Options::default());
    let (_crew, mut feed) = (world.crew(), world.feed());
    let group = |participant: &str| format!("{}.participant.{participant}", world.prefix);
    world.wait_until("all are in their groups", || {
        let (_, lines) = doctor(&world, &[]);
        PARTICIPANTS.iter().all(|participant| line(&lines, &group(participant)).starts_with("ok "))
    });
    let decisions = world.topic("decisions");
    let offset = feed.append(&decisions, 3, b"x", Some(b"{")).to_string();
    world.wait_until("all have stopped in front of it", || {
        let (_, lines) = doctor(&world, &[]);
        PARTICIPANTS.iter().all(|participant| line(&lines, &format!("{participant} incidents")).starts_with("BAD "))
    });
    let (code, ill) = doctor(&world, &[]);
    assert_eq!(code, 2);
    let of_hospital = line(&ill, "hospital incidents");
    for part in [
        "1 incidents wait for a person: 1 unreadable, since ",
        "shard 3 stands still",
        "suture participant hospital lost",
    ] {
        assert!(of_hospital.contains(part), "{of_hospital}");
    }
    let document: Value = serde_json::from_slice(&ask(&world, &["--json"], &[]).stdout).unwrap();
    let told =
        document["checks"].as_array().unwrap().iter().find(|check| check["name"] == "hospital incidents").unwrap();
    assert_eq!((&told["state"], &told["mend"]), (&"bad".into(), &"suture participant hospital lost".into()));

    let skip = ["skip", "--topic", &decisions, "--shard", "3", "--offset", &offset, "--because", "ticket 4711"];
    succeeds(&world.suture(&[&["participant", "hospital"], &skip[..]].concat()));
    world.wait_until("nothing waits at the hospital", || {
        let (_, lines) = doctor(&world, &[]);
        line(&lines, "hospital incidents").starts_with("ok ") && line(&lines, "insurer incidents").starts_with("BAD ")
    });
}
