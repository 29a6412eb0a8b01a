//! A server that plays a script, one connection per line of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(600);

/// Longer than any client here takes over sending a request.
const SILENCE: Duration = Duration::from_secs(20);

/// What the server does with one request.
pub enum Act {
    /// Sends these bytes and closes the connection.
    Answer(Vec<u8>),
    /// Sends these bytes and then nothing more, until the test is over.
    Hang(Vec<u8>),
    /// Does not even read the body.
    Ignore,
    /// Sends these bytes, and then one more after each pause.
    Drip(Vec<u8>, Duration),
}

/// Whether the test has seen what it wanted to see.
#[derive(Default)]
struct Over(Mutex<bool>, Condvar);

impl Over {
    fn is_over(&self) -> bool {
        *self.0.lock().unwrap()
    }

    fn set(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    /// Waits for it; `false` if it is not over after `limit`.
    fn wait(&self, limit: Duration) -> bool {
        *self.1.wait_timeout_while(self.0.lock().unwrap(), limit, |over| !*over).unwrap().0
    }
}

pub fn answer(head: &str, body: &[u8]) -> Act {
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    Act::Answer([head.as_bytes(), body].concat())
}

/// The start of an answer that is announced longer than it will be.
pub fn beginning(head: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A server that plays a script.
pub struct Server {
    pub url: String,
    over: Arc<Over>,
    seen: JoinHandle<Vec<String>>,
}

impl Server {
    /// One act for each connection.
    pub fn play(script: Vec<Act>) -> Self {
        let mut script = script.into_iter();
        Self::with(move || script.next())
    }

    /// The same for every connection.
    pub fn always(mut act: impl FnMut() -> Act + Send + 'static) -> Self {
        Self::with(move || Some(act()))
    }

    fn with(mut next: impl FnMut() -> Option<Act> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/blob?signature=s3cret", listener.local_addr().unwrap());
        let over = Arc::new(Over::default());
        let is_over = over.clone();
        let seen = std::thread::spawn(move || {
            let mut playing = Vec::new();
            for stream in listener.incoming() {
                if is_over.is_over() {
                    break;
                }
                // A connection too many is closed without an answer.
                let Some(act) = next() else { continue };
                let (stream, is_over) = (stream.unwrap(), is_over.clone());
                playing.push(std::thread::spawn(move || play_one(stream, act, &is_over)));
            }
            playing.into_iter().filter_map(|one| one.join().unwrap()).collect()
        });
        Self { url, over, seen }
    }

    /// The heads of the requests, in lower case.
    pub fn requests(self) -> Vec<String> {
        self.over.set();
        drop(TcpStream::connect(self.url.split('/').nth(2).unwrap()));
        self.seen.join().unwrap()
    }
}

/// Plays one act; the head of the request, unless the client went away over it.
fn play_one(stream: TcpStream, act: Act, over: &Over) -> Option<String> {
    // A client that gave up may keep a connection on which it never asked anything.
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if !matches!(act, Act::Ignore) {
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).ok()?;
    }
    let mut stream = reader.into_inner();
    // A client that has seen enough closes the connection.
    let (Act::Answer(bytes) | Act::Hang(bytes) | Act::Drip(bytes, _)) = &act else {
        over.wait(FOREVER);
        return Some(head);
    };
    let sent = stream.write_all(bytes);
    match act {
        Act::Hang(_) => drop(over.wait(FOREVER)),
        Act::Drip(_, pause) if sent.is_ok() => while !over.wait(pause) && stream.write_all(&[7]).is_ok() {},
        _ => {}
    }
    Some(head)
}
