//! tmp
use std::time::Duration;
use suture_topics::{membership::*, outbox::*, reader::*, settings::*};
fn main() {
    let s = KafkaSettings::new("127.0.0.1:29192", "suture".parse().unwrap());
    let (t, r) = std::sync::mpsc::channel();
    let o = Outbox::start(&s, "x", move |d| drop(t.send(d))).unwrap();
    o.append("allowed", 0, b"k", Some(b"v"), "vote", None, 1).unwrap();
    println!("{:?}", r.recv_timeout(Duration::from_secs(40)));
    o.append("denied", 0, b"k", Some(b"v"), "vote", None, 2).unwrap();
    println!("{:?}", r.recv_timeout(Duration::from_secs(40)));
    o.append("allowed", 0, b"k", Some(b"v"), "vote", None, 3).unwrap();
    println!("{:?}", r.recv_timeout(Duration::from_secs(40)));
    o.append("denied", 0, b"k", Some(b"v"), "vote", None, 4).unwrap();
    o.append("allowed", 1, b"k", Some(b"v"), "vote", None, 5).unwrap();
    println!("{:?}", r.recv_timeout(Duration::from_secs(40)));
    println!("{:?}", r.recv_timeout(Duration::from_secs(40)));
    let (t, mut r) = tokio::sync::mpsc::channel(8);
    let rd = Reader::start(&s, "g", t).unwrap();
    rd.add(&[("allowed", 0, 0)]);
    println!("{:?}", r.blocking_recv());
    println!("{:?}", r.blocking_recv());
    let (t, mut r) = tokio::sync::mpsc::channel(8);
    let m = Membership::start(&s, "notours", &["unseen".to_string()], t).unwrap();
    println!("{:?}", r.blocking_recv());
    println!(
        "{:?}",
        m.commit(vec![Commit { topic: "unseen".into(), partition: 0, offset: 1, metadata: String::new() }])
    );
    println!("{:?}", m.committed(&[("unseen", 0)]));
}
