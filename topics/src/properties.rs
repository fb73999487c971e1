//! What the settings become for librdkafka.
//!
//! Each value that is set here carries the protocol or was measured; the comments say which. Whatever else a cluster
//! needs (TLS, SASL, buffer sizes) goes to librdkafka as it stands in the table `[kafka.properties]`, except for the few
//! properties that the protocol itself depends on: those are refused by name.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use crate::settings::{KafkaSettings, RefusedSetting};

impl KafkaSettings {
    /// What can be said before the first connection.
    pub fn check(&self) -> Result<(), RefusedSetting> {
        let refuse = |key: &str, remedy: &str| Err(RefusedSetting { key: key.to_string(), remedy: remedy.to_string() });
        if self.bootstrap.trim().is_empty() {
            return refuse("bootstrap", "name at least one broker, as host:port");
        }
        if self.partitions == 0 {
            return refuse("partitions", "at least 1");
        }
        if !(100..=60_000).contains(&self.session_timeout_ms) {
            return refuse("session_timeout_ms", "100 to 60000");
        }
        if !(1..=5_000).contains(&self.fetch_wait_max_ms) {
            return refuse("fetch_wait_max_ms", "1 to 5000");
        }
        for (name, value) in &self.properties {
            if let Some(remedy) = remedy_for(name, value) {
                return refuse(&format!("properties.\"{name}\""), remedy);
            }
            // librdkafka's own words would repeat the value.
            let remedy = match ClientConfig::new().set(name, value).create_native_config() {
                Ok(_) => continue,
                Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
                    "librdkafka knows no such property; see its CONFIGURATION.md"
                }
                Err(_) => "librdkafka does not take its value; TLS and SCRAM need a build with `--features tls`",
            };
            return refuse(&format!("properties.\"{name}\""), remedy);
        }
        Ok(())
    }

    /// For [`crate::outbox`].
    pub(crate) fn producer(&self, client_id: &str) -> Result<ClientConfig, RefusedSetting> {
        self.client(
            client_id,
            &[
                // Durability: an append is acknowledged by all in-sync replicas.
                ("acks", "all"),
                // Order, and no second copy of a record on a late answer. Five is its limit.
                ("enable.idempotence", "true"),
                ("max.in.flight.requests.per.connection", "5"),
                // 5 ms of lingering would stand in each of the four hops.
                ("linger.ms", "0"),
                // Five minutes, the default, hide errors.
                ("message.timeout.ms", "30000"),
                ("queue.buffering.max.kbytes", "131072"),
            ],
        )
    }

    /// For [`crate::reader`].
    pub(crate) fn reader(&self, group: &str) -> Result<ClientConfig, RefusedSetting> {
        let mut config = self.consumer(group)?;
        config.set("fetch.wait.max.ms", self.fetch_wait_max_ms.to_string());
        self.set_unless_given(
            &mut config,
            &[
                // With its default of 1000 a reader whose queue was full sleeps a second: a tenth of the rate.
                ("fetch.queue.backoff.ms", "1"),
                ("fetch.error.backoff.ms", "50"),
                // What is read ahead is stale work after a take-over.
                ("queued.min.messages", "5000"),
                ("queued.max.messages.kbytes", "4096"),
            ],
        );
        Ok(config)
    }

    /// For [`crate::scan`]: a reader that is told when a log has no more.
    pub(crate) fn scanner(&self, group: &str) -> Result<ClientConfig, RefusedSetting> {
        let mut config = self.reader(group)?;
        config.set("enable.partition.eof", "true");
        Ok(config)
    }

    /// For [`crate::membership`].
    pub(crate) fn member(&self, group: &str) -> Result<ClientConfig, RefusedSetting> {
        let mut config = self.consumer(group)?;
        let heartbeat = (self.session_timeout_ms / 3).clamp(1, 500);
        let longest_silence = self.session_timeout_ms.max(30_000);
        config
            .set("group.protocol", "classic")
            // Range alone: the same shard of every topic comes to the same member.
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", self.session_timeout_ms.to_string())
            .set("heartbeat.interval.ms", heartbeat.to_string())
            .set("max.poll.interval.ms", longest_silence.to_string());
        Ok(config)
    }

    /// For [`crate::acks`]: knows a group and does not join it.
    pub(crate) fn consumer(&self, group: &str) -> Result<ClientConfig, RefusedSetting> {
        let mut config = self.client(group, &[])?;
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // The default skips whatever is there; a position outside the log is for the caller to judge.
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true");
        Ok(config)
    }

    /// For [`crate::probe`]: sees the true end of a log, also behind somebody's open Kafka transaction.
    pub(crate) fn probe(&self) -> Result<ClientConfig, RefusedSetting> {
        let mut config = self.client("probe", &[])?;
        config.set("isolation.level", "read_uncommitted");
        Ok(config)
    }

    /// For [`crate::admin`].
    pub(crate) fn admin(&self) -> Result<ClientConfig, RefusedSetting> {
        self.client("admin", &[])
    }

    /// What all clients share; `own` are defaults that `[kafka.properties]` may replace.
    fn client(&self, name: &str, own: &[(&str, &str)]) -> Result<ClientConfig, RefusedSetting> {
        self.check()?;
        let mut config = ClientConfig::new();
        for (property, value) in &self.properties {
            config.set(property, value);
        }
        self.set_unless_given(&mut config, own);
        self.set_unless_given(
            &mut config,
            &[
                // A leader change is found again within milliseconds.
                ("retry.backoff.ms", "20"),
                ("reconnect.backoff.ms", "50"),
                ("reconnect.backoff.max.ms", "1000"),
                ("socket.nagle.disable", "true"),
                // How long a topic that nobody knows may be one that is just being created.
                ("topic.metadata.propagation.max.ms", "5000"),
            ],
        );
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("client.id", format!("suture-{name}"))
            // A mistyped name fails.
            .set("allow.auto.create.topics", "false")
            // What goes further is tracing's decision, see `ffi::log`.
            .set_log_level(RDKafkaLogLevel::Info);
        Ok(config)
    }

    fn set_unless_given(&self, config: &mut ClientConfig, values: &[(&str, &str)]) {
        for (property, value) in values {
            if !self.properties.contains_key(*property) {
                config.set(*property, *value);
            }
        }
    }
}

/// Why a property may not have this value; `None` for all that is the operator's business.
fn remedy_for(name: &str, value: &str) -> Option<&'static str> {
    let safe = match name {
        "enable.idempotence" => value == "true",
        "acks" | "request.required.acks" => value == "all" || value == "-1",
        "isolation.level" => value == "read_committed",
        "enable.auto.commit" | "enable.auto.offset.store" | "allow.auto.create.topics" | "enable.partition.eof" => {
            value == "false"
        }
        "auto.offset.reset" => value == "error",
        "check.crcs" => value == "true",
        "group.protocol" => value == "classic",
        "partition.assignment.strategy" => value == "range",
        "max.in.flight" | "max.in.flight.requests.per.connection" => matches!(value.parse(), Ok(1..=5)),
        _ => true,
    };
    if !safe {
        return Some(match name {
            "enable.idempotence" | "max.in.flight" | "max.in.flight.requests.per.connection" => {
                "remove it: without idempotent producing (at most 5 in flight) records are written twice and out of order"
            }
            "acks" | "request.required.acks" => {
                "remove it: a vote or a decision must be on all in-sync replicas (acks=all)"
            }
            "isolation.level" => {
                "remove it: all readers must read the same records (read_committed), else two could take different first votes"
            }
            "enable.auto.commit" | "enable.auto.offset.store" => {
                "remove it: a committed offset means applied, so only Suture commits"
            }
            "allow.auto.create.topics" => "remove it: a topic created by accident has the wrong settings",
            "auto.offset.reset" => "remove it: skipping to an end of the log skips votes",
            _ => "remove it: the protocol depends on Suture's own value",
        });
    }
    match name {
        "bootstrap.servers" | "metadata.broker.list" => Some("set kafka.bootstrap instead"),
        "session.timeout.ms" | "heartbeat.interval.ms" => Some("set kafka.session_timeout_ms instead"),
        "fetch.wait.max.ms" => Some("set kafka.fetch_wait_max_ms instead"),
        "group.id" | "client.id" | "max.poll.interval.ms" => {
            Some("remove it: Suture names its groups and clients itself")
        }
        "group.instance.id" => Some("remove it: a static member that dies keeps its shards until the session ends"),
        "group.remote.assignor" | "client.rack" => {
            Some("remove it: every topic's same shard must come to the same member, read from its leader")
        }
        "transactional.id" => Some("remove it: nobody writes protocol topics inside a Kafka transaction"),
        _ if name.starts_with("test.mock") => Some("remove it: `suture demo` is the way to a broker that is not real"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(toml: &str) -> Result<KafkaSettings, toml::de::Error> {
        toml::from_str(toml)
    }

    fn with_property(name: &str, value: &str) -> KafkaSettings {
        let mut settings = KafkaSettings::new("a:9092", "suture".parse().unwrap());
        settings.properties.insert(name.to_string(), value.to_string());
        settings
    }

    #[test]
    fn only_the_brokers_must_be_named() {
        let settings = parse("bootstrap = 'a:9092,b:9092'").unwrap();
        assert_eq!(settings.check(), Ok(()));
        assert_eq!((settings.prefix.as_str(), settings.partitions, settings.log_letters), ("suture", 12, None));
        assert_eq!((settings.session_timeout_ms, settings.fetch_wait_max_ms), (6_000, 100));
        let full = "bootstrap = 'a:9092'\nprefix = 'demo'\npartitions = 3\nlog_letters = 'k3f9q'\n\
                    session_timeout_ms = 1500\nfetch_wait_max_ms = 5\n\
                    [properties]\n'security.protocol' = 'SASL_PLAINTEXT'\n'sasl.password' = 'secret'";
        assert_eq!(parse(full).unwrap().check(), Ok(()));
    }

    #[test]
    fn a_mistyped_property_is_refused_and_its_value_never_shown() {
        for (name, value) in [("sasl.passwrd", "hunter2"), ("security.protocol", "hunter2")] {
            let settings = with_property(name, value);
            let refused = settings.check().unwrap_err();
            assert_eq!(refused.key, format!("properties.\"{name}\""));
            assert!(!refused.to_string().contains(value) && !format!("{settings:?}").contains(value), "{refused}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_key() {
        assert!(parse("bootstrap = 'a:9092'\nbootstrp = 'b:9092'").is_err());
        assert!(parse("prefix = 'suture'").is_err());
        assert!(parse("bootstrap = 'a:9092'\nprefix = 'With Space'").is_err());
        for (line, key) in [
            ("bootstrap = ' '", "kafka.bootstrap:"),
            ("bootstrap = 'a:9092'\npartitions = 0", "kafka.partitions:"),
            ("bootstrap = 'a:9092'\nsession_timeout_ms = 10", "kafka.session_timeout_ms:"),
            ("bootstrap = 'a:9092'\nfetch_wait_max_ms = 0", "kafka.fetch_wait_max_ms:"),
        ] {
            let refused = parse(line).unwrap().check().unwrap_err();
            assert!(refused.to_string().starts_with(key), "{refused}");
        }
    }

    #[test]
    fn properties_that_break_the_protocol_are_refused_and_their_values_not_shown() {
        for (name, value) in [
            ("enable.idempotence", "false"),
            ("acks", "1"),
            ("request.required.acks", "0"),
            ("isolation.level", "read_uncommitted"),
            ("enable.auto.commit", "true"),
            ("enable.auto.offset.store", "true"),
            ("auto.offset.reset", "latest"),
            ("check.crcs", "false"),
            ("group.protocol", "consumer"),
            ("partition.assignment.strategy", "roundrobin"),
            ("max.in.flight", "6"),
            ("allow.auto.create.topics", "true"),
            ("bootstrap.servers", "elsewhere:9092"),
            ("session.timeout.ms", "45001"),
            ("group.id", "mine"),
            ("group.instance.id", "mine"),
            ("client.rack", "r1"),
            ("transactional.id", "mine"),
            ("test.mock.num.brokers", "3"),
        ] {
            let settings = with_property(name, value);
            let refused = settings.check().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("kafka.properties.\"{name}\": ")), "{refused}");
            assert!(settings.producer("x").is_err() && settings.reader("x").is_err() && settings.member("x").is_err());
        }
        let shown = with_property("acks", "hunter2").check().unwrap_err().to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn properties_reach_librdkafka_and_replace_defaults_but_never_the_protocols_values() {
        let mut settings = with_property("linger.ms", "2");
        settings.properties.insert("sasl.username".to_string(), "me".to_string());
        settings.properties.insert("acks".to_string(), "-1".to_string());
        let producer = settings.producer("x").unwrap();
        assert_eq!(producer.get("linger.ms"), Some("2"));
        assert_eq!(producer.get("sasl.username"), Some("me"));
        assert_eq!(producer.get("enable.idempotence"), Some("true"));
        let member = settings.member("suture.coordinator").unwrap();
        assert_eq!(member.get("heartbeat.interval.ms"), Some("500"));
        assert_eq!(member.get("enable.auto.commit"), Some("false"));
        assert_eq!(member.get("isolation.level"), Some("read_committed"));
    }
}
