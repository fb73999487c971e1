//! murmur2 against values made by Kafka's own Java: see the head of `murmur2.txt`.

use suture_contract::partitioner::{murmur2, shard_of};

#[test]
fn shards_are_those_of_kafkas_java_clients() {
    let mut checked = 0;
    for line in include_str!("murmur2.txt").lines().filter(|line| !line.starts_with('#')) {
        let parts: Vec<&str> = line.split(' ').collect();
        let [hex, hash, of_12, of_7] = parts[..] else { panic!("{line}") };
        let key: Vec<u8> = match hex {
            "-" => Vec::new(),
            hex => (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect(),
        };
        assert_eq!(murmur2(&key), u32::from_str_radix(hash, 16).unwrap(), "{line}");
        assert_eq!(shard_of(&key, 12).0, of_12.parse::<u16>().unwrap(), "{line}");
        assert_eq!(shard_of(&key, 7).0, of_7.parse::<u16>().unwrap(), "{line}");
        checked += 1;
    }
    assert_eq!(checked, 28);
}
