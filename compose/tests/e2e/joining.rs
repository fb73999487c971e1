//! `docs/joining.md`, run: its files are written, its commands executed, in its order. What the page says about a cluster of its
//! reader's is replaced by what the test has.
//!
//! | a block | becomes |
//! |---|---|
//! | `sh` | run; it must end well |
//! | `sh soon` | each line run until it ends well |
//! | `sh services` | each line a service, which stays |
//! | `sh setup` | nothing: the test has values of its own |
//! | anything with a path (`sql ../schema/x.sql`) | that file; with `>>` its end |

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Process, SUTURE};
use crate::rows;
use crate::world::{Options, World};

const PAGE: &str = "../docs/joining.md";

/// A fenced block.
struct Block {
    /// What stands behind the fence: `sh`, `toml participants/beds.toml`.
    info: String,
    text: String,
    line: usize,
}

#[test]
fn a_fourth_participant_joins_as_the_page_says() {
    let world = World::start(&Options::default());
    let (reader, page) = (Reader::new(&world), fs::read_to_string(here(PAGE)).unwrap());
    let mut services = Vec::new();
    for block in blocks(&page) {
        let (text, place) = (reader.replaced(&block.text), format!("docs/joining.md:{}", block.line));
        let words: Vec<&str> = block.info.split(' ').collect();
        match words.as_slice() {
            ["sh", "setup"] => {}
            ["sh"] => reader.run(&text, &place),
            ["sh", "soon"] => {
                for line in text.lines() {
                    world.wait_until(&format!("{place}: {line}"), || reader.command(line).status().unwrap().success());
                }
            }
            ["sh", "services"] => services.extend(text.lines().map(|line| reader.start(line))),
            [_, ">>", file] => {
                OpenOptions::new()
                    .append(true)
                    .open(reader.folder.join(file))
                    .unwrap()
                    .write_all(text.as_bytes())
                    .unwrap();
            }
            [_, file] => fs::write(reader.folder.join(file), text).unwrap(),
            _ => panic!("{place}: nobody knows what to do with this block"),
        }
    }
    assert_eq!(services.len(), 4, "the page has come to its end");
    for service in &mut services {
        assert!(service.terminate().success(), "{} drained", service.name());
    }
    rows::execute(world.cluster.postgres_admin(), &format!("drop database {} with (force)", reader.database)).unwrap();
    rows::execute(world.cluster.postgres_admin(), &format!("drop role {}", reader.role)).unwrap();
}

/// Who follows the page.
struct Reader {
    folder: PathBuf,
    environment: Vec<(String, String)>,
    replaced: Vec<(&'static str, String)>,
    database: String,
    role: String,
}

impl Reader {
    fn new(world: &World) -> Self {
        let folder = world.config_file().parent().unwrap().to_path_buf();
        let name = world.prefix.replace('-', "_");
        let (database, role) = (format!("{name}_beds"), format!("{name}_login"));
        rows::execute(world.cluster.postgres_admin(), &format!("create database {database}")).unwrap();
        let admin = world.cluster.postgres(&database);
        // A stranger who is in the hospital's register too.
        let patients =
            "select value from patient where value <> 'eda17701-070d-4fae-9f7d-c8cd6263b63a' order by value limit 1";
        let patient = rows::query(world.postgres("hospital"), patients).remove(0);
        let bin = folder.join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(SUTURE, bin.join("suture")).unwrap();
        let tool = format!("#!/bin/sh\nexec '{}' tool TopicCommand \"$@\"\n", here("servers/servers").display());
        fs::write(bin.join("kafka-topics.sh"), tool).unwrap();
        fs::set_permissions(bin.join("kafka-topics.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let environment = [
            ("PATH", path),
            ("KAFKA", world.kafka.bootstrap.clone()),
            ("SUTURE_BEDS_URL", admin.replace("postgres@", &format!("{role}@"))),
            ("BEDS_ADMIN", admin),
            ("HOSPITAL_ADMIN", world.postgres("hospital").to_string()),
            ("SUTURE_HOSPITAL_URL", world.postgres("hospital").to_string()),
            ("SUTURE_INSURER_URL", world.mariadb("insurer").to_string()),
        ];
        let environment = environment.map(|(name, value)| (name.to_string(), value)).to_vec();
        let replaced =
            vec![("hospital.admissions", format!("{}.admissions", world.prefix)), ("OTHER_PATIENT", patient)];
        Self { folder, environment, replaced, database, role }
    }

    fn replaced(&self, text: &str) -> String {
        self.replaced.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-e", "-o", "pipefail", "-c", script]).current_dir(&self.folder).envs(self.environment.clone());
        let log = File::options().create(true).append(true).open(self.folder.join("page.log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    fn run(&self, script: &str, place: &str) {
        let status = self.command(script).status().unwrap();
        let log = fs::read_to_string(self.folder.join("page.log")).unwrap();
        assert!(status.success(), "{place}: {status}\n{script}\n{log}");
    }

    fn start(&self, line: &str) -> Process {
        let mut words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let (name, config) = (words.join("-"), self.folder.join("suture.toml").display().to_string());
        words.extend(["--config", &config]);
        Process::start(&name, &self.folder, &words, &self.environment)
    }
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut is_open = false;
    for (number, line) in page.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(info) if !is_open => {
                blocks.push(Block { info: info.to_string(), text: String::new(), line: number + 1 });
                is_open = true;
            }
            Some(_) => is_open = false,
            None if is_open => {
                let block = blocks.last_mut().expect("it is open");
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    blocks
}
