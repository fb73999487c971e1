//! A way to a PostgreSQL server that the test stands in.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use tokio_postgres::config::Host;

/// The host and port of a URL.
pub fn address(url: &str) -> String {
    let config: tokio_postgres::Config = url.parse().unwrap();
    let [Host::Tcp(host)] = config.get_hosts() else { panic!("one host, by TCP") };
    format!("{host}:{}", config.get_ports()[0])
}

/// Answers the port where it begins. `admits` is asked for each connection, and `change` sees each message to the server; it
/// must leave the length.
pub fn way_to(
    address: String,
    mut admits: impl FnMut() -> bool + Send + 'static,
    change: impl Fn(&mut [u8]) + Clone + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            if !admits() {
                continue;
            }
            let server = TcpStream::connect(&address).unwrap();
            let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let change = change.clone();
            // Either end may go first.
            thread::spawn(move || {
                let _ = messages(&client, &server, &change);
                let _ = server.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let _ = io::copy(&mut answers, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

fn messages(mut from: &TcpStream, mut to: &TcpStream, change: &impl Fn(&mut [u8])) -> io::Result<()> {
    // A length of four bytes, and all but the first message have a letter before it.
    let mut letter = 0;
    loop {
        let mut message = vec![0; letter + 4];
        from.read_exact(&mut message)?;
        let length = message.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        message.resize(letter + usize::try_from(length).unwrap(), 0);
        from.read_exact(&mut message[letter + 4..])?;
        change(&mut message);
        to.write_all(&message)?;
        letter = 1;
    }
}
