//! A bad network between a worker and the store: an HTTP proxy that resets, delays, holds, cuts, refuses and damages.
//!
//! A client that uses it as its proxy sends whole URLs for plain HTTP, and asks for tunnels for HTTPS. Every request has a
//! connection of its own. What goes wrong is drawn from a seed.

use std::collections::HashSet;
use std::io::{BufReader, Read, Write};
use std::mem::Discriminant;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than the stall timeout of the clients here.
const HELD_FOR: Duration = Duration::from_secs(2);
/// A pause that a slow network makes.
const SLOW: Duration = Duration::from_millis(30);
/// In how many of ten requests something goes wrong.
const FAULTY_OF_TEN: u64 = 4;
/// Bytes within which a fault strikes.
const WITHIN_BYTES: u64 = 3 * 1024 * 1024;

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Refused at once, without reading what was sent.
    RefusedEarly(u16),
    /// Refused when everything was sent, which never arrived.
    RefusedLate(u16),
    /// Done, but the answer says that it was not.
    Denied(u16),
    /// The connection is reset after so many bytes were sent.
    ResetSending(u64),
    /// The same while the answer comes.
    ResetAnswering(u64),
    /// The answer ends early.
    Cut(u64),
    /// Nothing moves any more.
    Held(u64),
    /// A sent byte is damaged.
    DamagedSending(u64),
    /// A byte of the answer's body is.
    DamagedAnswering(u64),
    /// Everything takes its time.
    Slow,
}

/// The proxy.
pub struct Proxy {
    pub url: String,
    /// What went wrong, in order.
    pub faults: Arc<Mutex<Vec<Fault>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub fn start(seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (faults, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (noted, is_over) = (faults.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut dice = fastrand::Rng::with_seed(seed);
            for client in listener.incoming().flatten() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (fault, noted) = (draw(&mut dice), noted.clone());
                // Either side may go away at any time; that is what this is for.
                std::thread::spawn(move || drop(serve(client, fault, &noted)));
            }
        });
        Self { url, faults, over, thread: Some(thread) }
    }

    /// The kinds of faults that there were.
    pub fn kinds(&self) -> HashSet<Discriminant<Fault>> {
        self.faults.lock().unwrap().iter().map(std::mem::discriminant).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn draw(dice: &mut fastrand::Rng) -> Option<Fault> {
    if dice.u64(0..10) >= FAULTY_OF_TEN {
        return None;
    }
    let status = *dice.choice(&[500, 503, 409]).unwrap();
    // Some strike at the very beginning.
    let at = dice.u64(0..WITHIN_BYTES) * dice.u64(0..2);
    Some(match dice.u8(0..10) {
        0 => Fault::RefusedEarly(status),
        1 => Fault::RefusedLate(status),
        2 => Fault::Denied(status),
        3 => Fault::ResetSending(at),
        4 => Fault::ResetAnswering(at),
        5 => Fault::Cut(at),
        6 => Fault::Held(at),
        7 => Fault::DamagedSending(at),
        8 => Fault::DamagedAnswering(at),
        _ => Fault::Slow,
    })
}

fn serve(client: TcpStream, fault: Option<Fault>, noted: &Mutex<Vec<Fault>>) -> std::io::Result<()> {
    noted.lock().unwrap().extend(fault);
    let mut reader = BufReader::new(client.try_clone()?);
    let head = read_head(&mut reader)?;
    let first = head.lines().next().unwrap_or_default().to_owned();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if method == "CONNECT" {
        (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        return tunnel(reader, &client, TcpStream::connect(target)?, fault);
    }
    let (host, path) = target.trim_start_matches("http://").split_once('/').unwrap_or((target, ""));
    if let Some(Fault::RefusedEarly(status)) = fault {
        return refuse(&client, status);
    }
    let server = TcpStream::connect(host)?;
    let rest: Vec<&str> =
        head.lines().skip(1).filter(|line| !line.is_empty() && !is_header(line, "connection")).collect();
    let head = format!("{method} /{path} HTTP/1.1\r\n{}\r\nConnection: close\r\n\r\n", rest.join("\r\n"));
    let length = rest.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = reader.take(length.unwrap_or(0));
    if let Some(Fault::RefusedLate(status)) = fault {
        std::io::copy(&mut body, &mut std::io::sink())?;
        return refuse(&client, status);
    }
    // Answers that come early are passed on at once.
    (&server).write_all(head.as_bytes())?;
    let (answering, to) = (server.try_clone()?, client.try_clone()?);
    let answer = std::thread::spawn(move || pass_answer(answering, to, fault));
    let sent = match fault {
        Some(Fault::ResetSending(at)) => pass(&mut body, &server, Trouble::Reset(at)),
        Some(Fault::Held(at)) if length.is_some() => pass(&mut body, &server, Trouble::Hold(at)),
        Some(Fault::DamagedSending(at)) => pass(&mut body, &server, Trouble::Damage(at)),
        Some(Fault::Slow) => pass(&mut body, &server, Trouble::Slow),
        _ => pass(&mut body, &server, Trouble::None),
    };
    if sent.is_err() {
        reset(&client);
        reset(&server);
    }
    drop(answer.join());
    Ok(())
}

fn is_header(line: &str, name: &str) -> bool {
    line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name))
}

fn read_head(reader: &mut impl std::io::BufRead) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

fn refuse(mut client: &TcpStream, status: u16) -> std::io::Result<()> {
    let text = "something went wrong";
    let answer =
        format!("HTTP/1.1 {status} Trouble\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
    client.write_all(answer.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    // What is still being sent is read, or the client would see a reset instead of the answer.
    std::io::copy(&mut client, &mut std::io::sink()).map(drop)
}

fn pass_answer(server: TcpStream, client: TcpStream, fault: Option<Fault>) -> std::io::Result<()> {
    let mut reader = BufReader::new(server);
    let head = read_head(&mut reader)?;
    if let Some(Fault::Denied(status)) = fault {
        std::io::copy(&mut reader, &mut std::io::sink())?;
        return refuse(&client, status);
    }
    (&client).write_all(head.as_bytes())?;
    let trouble = match fault {
        Some(Fault::ResetAnswering(at)) => Trouble::Reset(at),
        Some(Fault::Cut(at)) => Trouble::Cut(at),
        Some(Fault::Held(at)) => Trouble::Hold(at),
        Some(Fault::DamagedAnswering(at)) => Trouble::Damage(at),
        Some(Fault::Slow) => Trouble::Slow,
        _ => Trouble::None,
    };
    let passed = pass(&mut reader, &client, trouble);
    match passed {
        Err(_) => reset(&client),
        Ok(()) => drop(client.shutdown(Shutdown::Write)),
    }
    passed
}

/// Under TLS nobody can refuse; everything else happens to what is encrypted.
fn tunnel(
    mut from_client: BufReader<TcpStream>,
    client: &TcpStream,
    server: TcpStream,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let (sending, answering) = match fault {
        Some(Fault::ResetSending(at)) => (Trouble::Reset(at), Trouble::None),
        Some(Fault::ResetAnswering(at)) => (Trouble::None, Trouble::Reset(at)),
        Some(Fault::RefusedEarly(_) | Fault::RefusedLate(_) | Fault::Denied(_)) => (Trouble::None, Trouble::Cut(0)),
        Some(Fault::Cut(at)) => (Trouble::None, Trouble::Cut(at)),
        Some(Fault::Held(at)) => (Trouble::Hold(at), Trouble::Hold(at)),
        Some(Fault::DamagedSending(at)) => (Trouble::Damage(at), Trouble::None),
        Some(Fault::DamagedAnswering(at)) => (Trouble::None, Trouble::Damage(at)),
        Some(Fault::Slow) => (Trouble::Slow, Trouble::Slow),
        _ => (Trouble::None, Trouble::None),
    };
    let (mut from_server, to_client, both) = (server.try_clone()?, client.try_clone()?, client.try_clone()?);
    let back = std::thread::spawn(move || {
        let passed = pass(&mut from_server, &to_client, answering);
        reset_if(passed.is_err(), &both);
        drop(both.shutdown(Shutdown::Both));
        drop(from_server.shutdown(Shutdown::Both));
    });
    let passed = pass(&mut from_client, &server, sending);
    reset_if(passed.is_err(), client);
    drop(server.shutdown(Shutdown::Both));
    drop(back.join());
    Ok(())
}

/// What happens to bytes on their way, after so many of them.
#[derive(Clone, Copy)]
enum Trouble {
    None,
    Reset(u64),
    Cut(u64),
    Hold(u64),
    Damage(u64),
    Slow,
}

fn pass(from: &mut impl Read, mut to: &TcpStream, trouble: Trouble) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut done = 0;
    loop {
        let n = from.read(&mut buffer)? as u64;
        let strikes = |at: u64| (done..done + n.max(1)).contains(&at);
        match trouble {
            Trouble::Reset(at) if strikes(at) => return Err(std::io::ErrorKind::ConnectionReset.into()),
            Trouble::Cut(at) if strikes(at) => return to.write_all(&buffer[..(at - done) as usize]),
            Trouble::Hold(at) if strikes(at) => {
                std::thread::sleep(HELD_FOR);
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            Trouble::Damage(at) if n > 0 && strikes(at) => buffer[(at - done) as usize] ^= 0x20,
            Trouble::Slow if done < 1 << 20 => std::thread::sleep(SLOW),
            _ => {}
        }
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n as usize])?;
        done += n;
    }
}

fn reset_if(wanted: bool, stream: &TcpStream) {
    if wanted {
        reset(stream);
    }
}

/// Closes it for both sides at once.
fn reset(stream: &TcpStream) {
    drop(stream.shutdown(Shutdown::Both));
}
