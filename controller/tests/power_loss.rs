//! What the journal has acknowledged is there after the power fails.
//!
//! The power of a file system fails by the kernel's shutdown ioctl without a flush of its journal: what was not synced is
//! gone. The writer is a process of its own, so that nothing of it helps afterwards. Needs root, loop devices and ext4.

use railyard_common::time::Millis;
use railyard_controller::journal::{Journal as _, SledJournal};
use railyard_core::{Event, Farm};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Set in the child: it writes to this journal, and does nothing else.
const JOURNAL: &str = "RAILYARD_TEST_JOURNAL";
/// Set in the child of the control: it uses sled without what the journal adds to it.
const BARE: &str = "RAILYARD_TEST_BARE_SLED";
/// Set in the child that installs one snapshot after another.
const GENERATIONS: &str = "RAILYARD_TEST_GENERATIONS";
/// Batches that are acknowledged before the power fails.
const BATCHES: u64 = 400;
/// The `n`th batch has this many events; one in a hundred is so large that sled puts it into a file of its own.
const LARGE_EVERY: u64 = 100;
const LARGE_EVENTS: u64 = 30_000;
/// A snapshot is installed here, so that both generations are tried.
const SNAPSHOT_AT: u64 = 150;

#[test]
fn acknowledged_events_survive_a_loss_of_power() {
    if let Some(dir) = std::env::var_os(JOURNAL) {
        return write_until_killed(Path::new(&dir));
    }
    let disk = Disk::mounted();
    let acked = acknowledged_by("acknowledged_events_survive_a_loss_of_power", JOURNAL, &disk.at("journal"));
    assert_eq!(acked, BATCHES);
    disk.lose_power_and_mount_again();

    let mut journal = SledJournal::open(&disk.at("journal")).unwrap();
    let loaded = journal.load().unwrap();
    assert!(loaded.snapshot.is_some(), "the snapshot is gone");
    let found: Vec<u64> = loaded.events.iter().map(number).collect();
    let wanted: Vec<u64> = (SNAPSHOT_AT + 1..=BATCHES).flat_map(|n| vec![n; events_in(n) as usize]).collect();
    assert!(found.len() >= wanted.len(), "{} of {} acknowledged events are there", found.len(), wanted.len());
    assert!(found[..wanted.len()] == wanted[..], "acknowledged events are not as they were written");
    // And it goes on from there.
    journal.append(&[event(BATCHES + 1)]).unwrap();
}

/// The power may fail at any point of a snapshot's way: what was acknowledged is in the old generation, or in the new one.
#[test]
fn a_change_of_generations_survives_a_loss_of_power() {
    const TEST: &str = "a_change_of_generations_survives_a_loss_of_power";
    if let Some(dir) = std::env::var_os(GENERATIONS) {
        return change_generations_until_killed(Path::new(&dir));
    }
    // The child does not wait: each time it is somewhere else when it is killed.
    for wanted in [1, 4, 9, 17] {
        let disk = Disk::mounted();
        let acked = said_by(TEST, GENERATIONS, &disk.at("journal"), wanted);
        disk.lose_power_and_mount_again();
        let mut journal = SledJournal::open(&disk.at("journal")).unwrap();
        let found = journal.load().unwrap().farm().snapshot();
        // More than it had said may be there, and nothing less.
        let number = (acked..acked + 1_000).find(|number| farm_after(*number).snapshot() == found);
        assert!(number.is_some(), "after {acked} acknowledged appends another state is there: {found:?}");
        journal.append(&[event(1)]).unwrap();
    }
}

/// A farm that has been restored so many times: each changes the state.
fn farm_after(number: u64) -> Farm {
    let mut farm = Farm::default();
    (1..=number).for_each(|_| farm.apply(&Event::ControllerRestored { at: Millis(0) }));
    farm
}

/// The child: appends, says so, installs a snapshot, and so on.
fn change_generations_until_killed(dir: &Path) {
    let mut journal = SledJournal::open(dir).unwrap();
    let mut farm = journal.load().unwrap().farm();
    for number in 1.. {
        let event = Event::ControllerRestored { at: Millis(0) };
        farm.apply(&event);
        journal.append(&[event]).unwrap();
        println!("acked {number}");
        journal.install(&farm.snapshot()).unwrap();
    }
}

/// The control: without the journal's own syncs the same test finds a loss, so the failure of power is a real one.
#[test]
fn sled_s_own_flush_does_not_survive_it() {
    if let Some(dir) = std::env::var_os(BARE) {
        return flush_only(Path::new(&dir));
    }
    let disk = Disk::mounted();
    let acked = acknowledged_by("sled_s_own_flush_does_not_survive_it", BARE, &disk.at("bare"));
    assert_eq!(acked, BATCHES);
    disk.lose_power_and_mount_again();
    let found = sled::open(disk.at("bare")).map_or(0, |db| db.len() as u64);
    assert!(found < BATCHES, "all {found} flushed records are there: this machine cannot show a loss of power");
}

fn event(number: u64) -> Event {
    Event::ControllerStarted { at: Millis(number) }
}

fn number(event: &Event) -> u64 {
    match event {
        Event::ControllerStarted { at } => at.0,
        other => panic!("{other:?} was never written"),
    }
}

fn events_in(batch: u64) -> u64 {
    if batch.is_multiple_of(LARGE_EVERY) { LARGE_EVENTS } else { 1 + batch % 7 }
}

/// The child: appends, and says so after each batch; then waits for its end.
fn write_until_killed(dir: &Path) {
    let mut journal = SledJournal::open(dir).unwrap();
    journal.load().unwrap();
    for batch in 1..=BATCHES {
        let events = vec![event(batch); events_in(batch) as usize];
        journal.append(&events).unwrap();
        if batch == SNAPSHOT_AT {
            journal.install(&Farm::default().snapshot()).unwrap();
        }
        println!("acked {batch}");
    }
    wait_for_the_kill();
}

/// The control's child: what sled promises by itself.
fn flush_only(dir: &Path) {
    let db = sled::Config::new().path(dir).flush_every_ms(None).open().unwrap();
    for batch in 1..=BATCHES {
        db.insert(batch.to_be_bytes(), vec![7; 200]).unwrap();
        db.flush().unwrap();
        println!("acked {batch}");
    }
    wait_for_the_kill();
}

/// Nothing is closed in an orderly way: the standard input never ends before the kill.
fn wait_for_the_kill() {
    let _ = std::io::stdin().lines().next();
}

/// Runs the child until it has acknowledged everything, and kills it; gives the last number that it said.
fn acknowledged_by(test: &str, role: &str, dir: &Path) -> u64 {
    said_by(test, role, dir, BATCHES)
}

/// Runs the child until it has acknowledged so many appends, and kills it; gives the last number that was read.
fn said_by(test: &str, role: &str, dir: &Path, wanted: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(role, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acked = 0;
    for line in lines.map_while(Result::ok) {
        // The test harness writes to the same line before the first one.
        let said = line.split_once("acked ").and_then(|(_, number)| number.parse().ok());
        acked = said.unwrap_or(acked);
        if acked == wanted {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    acked
}

/// An ext4 file system in a file, mounted while this lives.
///
/// One loop device serves both mounts: a device that is being torn down could still write behind a second one's back.
struct Disk {
    dir: tempfile::TempDir,
    device: String,
}

impl Disk {
    fn mounted() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.ext4");
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        // Everything is written now: nothing in the background touches the disk later.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image));
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&image)).trim().to_owned();
        let disk = Self { dir, device };
        std::fs::create_dir(disk.mount_point()).unwrap();
        disk.mount();
        disk
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mount_point().join(name)
    }

    fn mount(&self) {
        run(Command::new("mount").arg(&self.device).arg(self.mount_point()));
    }

    /// EXT4_IOC_SHUTDOWN, `_IOR('X', 125, __u32)`, with EXT4_GOING_FLAGS_NOLOGFLUSH.
    fn lose_power_and_mount_again(&self) {
        let script = "import fcntl, os, struct, sys\n\
                      fd = os.open(sys.argv[1], os.O_RDONLY)\n\
                      fcntl.ioctl(fd, (2 << 30) | (4 << 16) | (ord('X') << 8) | 125, struct.pack('I', 2))\n";
        run(Command::new("python3").args(["-c", script]).arg(self.mount_point()));
        run(Command::new("umount").arg(self.mount_point()));
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: after a failed assertion something may still be open there.
        let _ = Command::new("umount").arg("-l").arg(self.mount_point()).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// Runs a command that must succeed, and gives what it printed; says what this test needs if it fails.
fn run(command: &mut Command) -> String {
    let needs = "this test needs root, loop devices, mkfs.ext4 and python3";
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}; {needs}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {said}; {needs}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
