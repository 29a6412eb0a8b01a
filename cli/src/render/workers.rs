//! Workers for people: which there are, and what holds them back.

use super::human;
use super::style::Tone;
use super::table::{Cell, Table};
use crate::view::{Disk, Offer, Worker, WorkerState};
use jiff::Timestamp;

impl From<WorkerState> for Tone {
    fn from(state: WorkerState) -> Self {
        match state {
            WorkerState::Online => Self::Good,
            WorkerState::Offline | WorkerState::Quarantined => Self::Bad,
            WorkerState::Cordoned | WorkerState::Draining | WorkerState::Retiring | WorkerState::Stopping => Self::Busy,
            WorkerState::Drained | WorkerState::Retired => Self::Faint,
            WorkerState::Unknown => Self::Plain,
        }
    }
}

/// `workers`
pub fn workers(workers: &[Worker], now: Timestamp) -> Table {
    let headings = [
        "WORKER",
        "STATE",
        "POOL",
        "PLATFORMS",
        "LABELS",
        ">SLOTS",
        ">CPU",
        ">MEMORY",
        ">DISK",
        ">DISK USED",
        ">DISK FREE",
        "JOBS",
        "VERSION",
        "LAST SEEN",
        "WHY",
    ];
    let mut table = Table::new(&headings);
    for worker in workers {
        let platforms: Vec<String> = worker.platforms.iter().map(platform).collect();
        let jobs: Vec<String> = worker.jobs.iter().map(|job| format!("{} {}", job.build, job.job)).collect();
        let (used, all) = (&worker.reserved, &worker.capacity);
        table.row(vec![
            Cell::from(&worker.name),
            Cell::toned(state(worker), Tone::from(worker.state)),
            Cell::from(worker.pool.as_deref().unwrap_or_default()),
            Cell::from(platforms.join(", ")),
            Cell::from(human::pairs(&worker.labels)),
            Cell::from(format!("{}/{}", used.slots, all.slots)),
            Cell::from(format!("{}/{}", human::cpus(used.cpu_millis), human::cpus(all.cpu_millis))),
            Cell::from(share(used.memory_bytes, all.memory_bytes)),
            Cell::from(share(used.disk_bytes, all.disk_bytes)),
            Cell::from(worker.disk.as_ref().and_then(disk_used).unwrap_or_default()),
            Cell::from(worker.free_disk_bytes.map(human::size).unwrap_or_default()),
            Cell::from(jobs.join(", ")),
            Cell::from(worker.version.as_deref().unwrap_or_default()),
            Cell::from(worker.last_seen_at.map(|at| human::age(at, now)).unwrap_or_default()),
            Cell::from(why(worker, now)),
        ]);
    }
    table
}

fn platform(offer: &Offer) -> String {
    if offer.emulated { format!("{} (emulated)", offer.platform) } else { offer.platform.clone() }
}

/// The state; of a worker that is held back, whether it is there at all.
fn state(worker: &Worker) -> String {
    let word = worker.state.as_str();
    if worker.hold.is_some() && !worker.connected { format!("{word}, offline") } else { word.to_owned() }
}

/// Who holds it back, why and until when. Empty if nothing does.
fn why(worker: &Worker, now: Timestamp) -> String {
    let mut parts = Vec::new();
    if let Some(hold) = &worker.hold {
        let why = hold.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        parts.push(format!("by {}{why}", hold.by));
        if let Some(until) = hold.until {
            parts.push(format!("ends {}", human::until(until, now)));
        }
        if let Some(stop_at) = hold.stop_at.filter(|_| !worker.jobs.is_empty()) {
            parts.push(format!("stops what runs {}", human::until(stop_at, now)));
        }
    }
    if let Some(quarantine) = &worker.quarantine {
        let next = quarantine.until.map(|until| human::until(until, now)).unwrap_or_default();
        parts.push(format!("{} losses in a row, may try one job {next}", quarantine.losses));
    }
    if let Some(pressure) = &worker.pressure {
        parts.push(format!("takes nothing new: {} pressure, {} %", pressure.of, pressure.percent));
    }
    if worker.state == WorkerState::Stopping {
        parts.push("its process ends when its jobs have".to_owned());
    }
    parts.join("; ")
}

/// Reserved of all there is: `1.0 GiB/16 GiB`, `0/16 GiB`.
fn share(used: u64, all: u64) -> String {
    let used = if used == 0 { "0".to_owned() } else { human::size(used) };
    format!("{used}/{}", human::size(all))
}

/// `workers --disk`: a line for each file system.
pub fn disks(workers: &[Worker], now: Timestamp) -> Table {
    let mut headings = vec!["WORKER", "ON", ">USED", ">FREE", ">FROM", ">TO", ">EVICTABLE", ">ROOM"];
    let kinds = [">BLOBS", ">LAYERS", ">IMAGES", ">WORK", ">CONTAINERS", ">VOLUMES", ">LOGS"];
    headings.extend(kinds);
    headings.push("COUNTED");
    let mut table = Table::new(&headings);
    for (worker, disk) in workers.iter().filter_map(|worker| Some((worker, worker.disk.as_ref()?))) {
        for found in &disk.file_systems {
            let kind = |kind: &railyard_common::disk::Kind| {
                let used = disk.kinds.get(kind.as_str()).filter(|used| used.on == found.role);
                Cell::from(used.map(|used| human::size(used.bytes)).unwrap_or_default())
            };
            let size = |bytes: u64| Cell::from(human::size(bytes));
            let mut row = vec![
                Cell::from(&worker.name),
                Cell::from(found.role),
                Cell::from(share(found.used_bytes, found.total_bytes)),
                size(found.free_bytes),
                size(found.high_bytes),
                size(found.low_bytes),
                size(found.evictable_bytes),
                size(disk.room_bytes),
            ];
            row.extend(railyard_common::disk::Kind::ALL.iter().map(kind));
            row.push(Cell::from(disk.counted_at.map(|at| human::age(at, now)).unwrap_or_default()));
            table.row(row);
        }
    }
    table
}

/// What is in use of the file system that is fullest.
fn disk_used(disk: &Disk) -> Option<String> {
    disk.fullest().map(|found| share(found.used_bytes, found.total_bytes))
}

/// What has become of a worker that is held back: `w1 is draining by olga: new disk; 2 jobs run there`.
pub fn sentence(worker: &Worker, now: Timestamp) -> String {
    let jobs = match worker.jobs.len() {
        0 => "nothing runs there".to_owned(),
        1 => "1 job runs there".to_owned(),
        number => format!("{number} jobs run there"),
    };
    super::ansi::one_line(&format!("{} is {} {}; {jobs}", worker.name, state(worker), why(worker, now)))
}

/// What is still waited for.
pub fn still_running(worker: &Worker) -> String {
    let jobs: Vec<String> = worker.jobs.iter().map(|job| format!("{} {}", job.build, job.job)).collect();
    super::ansi::one_line(&format!("{} still runs {}", worker.name, jobs.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::changes::tests::at;
    use crate::render::style::Style;
    use crate::view::{Capacity, DiskUse, FileSystem, Hold, Quarantine, RunningJob};

    fn worker(name: &str) -> Worker {
        Worker {
            name: name.to_owned(),
            state: WorkerState::Online,
            connected: true,
            hold: None,
            quarantine: None,
            pressure: None,
            pool: None,
            platforms: vec![Offer { platform: "linux/amd64".to_owned(), emulated: false }],
            capacity: Capacity { cpu_millis: 2000, memory_bytes: 8 << 30, disk_bytes: 100 << 30, slots: 2 },
            reserved: Capacity::default(),
            free_disk_bytes: None,
            disk: None,
            jobs: Vec::new(),
            version: None,
            last_seen_at: at(98),
            labels: [].into(),
            allows_privileged: false,
        }
    }

    fn running(job: &str) -> RunningJob {
        RunningJob { build: "mini/1".to_owned(), job: job.to_owned(), attempt: 1, phase: Some("run") }
    }

    #[test]
    fn workers_mark_what_is_emulated() {
        let mut one = worker("w1");
        one.platforms.push(Offer { platform: "linux/arm64".to_owned(), emulated: true });
        one.reserved = Capacity { cpu_millis: 500, memory_bytes: 1 << 30, disk_bytes: 0, slots: 1 };
        one.jobs.push(running("image@linux/amd64"));
        one.version = Some("0.1.0".to_owned());
        let text = workers(&[one], at(100).unwrap()).render(Style::PLAIN);
        let row = "w1      online  linux/amd64, linux/arm64 (emulated)    1/2  0.5/2  1.0 GiB/8.0 GiB  0/100 GiB  \
                   mini/1 image@linux/amd64  0.1.0    2s ago\n";
        assert!(text.ends_with(row), "{text}");
    }

    #[test]
    fn disks_show_what_is_on_each_of_them() {
        const GIB: u64 = 1 << 30;
        let file_system = |role, free_bytes| FileSystem {
            role,
            total_bytes: 100 * GIB,
            used_bytes: 100 * GIB - free_bytes,
            free_bytes,
            evictable_bytes: 9 * GIB,
            high_bytes: 85 * GIB,
            low_bytes: 75 * GIB,
            reserve_bytes: 2 * GIB,
        };
        let used = |on, bytes| DiskUse { bytes, count: 3, evictable_bytes: 0, on };
        let mut one = worker("w1");
        one.disk = Some(Disk {
            file_systems: vec![file_system("data", 60 * GIB), file_system("engine", 20 * GIB)],
            kinds: [("blobs", used("data", 4 * GIB)), ("images", used("engine", 5 * GIB))].into(),
            room_bytes: 27 * GIB,
            counted_at: at(40),
        });
        let now = at(100).unwrap();
        let text = disks(&[one.clone(), worker("w2")], now).render(Style::PLAIN);
        assert_eq!(
            text,
            "\
WORKER  ON                USED    FREE    FROM      TO  EVICTABLE    ROOM    BLOBS   IMAGES  COUNTED
w1      data    40 GiB/100 GiB  60 GiB  85 GiB  75 GiB    9.0 GiB  27 GiB  4.0 GiB           1m ago
w1      engine  80 GiB/100 GiB  20 GiB  85 GiB  75 GiB    9.0 GiB  27 GiB           5.0 GiB  1m ago
"
        );
        assert!(workers(&[one], now).render(Style::PLAIN).contains(" 80 GiB/100 GiB "), "the one that is fullest");
    }

    #[test]
    fn workers_say_what_holds_them_back() {
        let hold = |kind, why: &str| Hold {
            kind,
            by: "olga".to_owned(),
            why: Some(why.to_owned()).filter(|why| !why.is_empty()),
            until: None,
            stop_at: None,
        };
        let mut pooled = worker("w1");
        pooled.pool = Some("big".to_owned());
        pooled.labels = [("kvm".to_owned(), "yes".to_owned())].into();
        pooled.free_disk_bytes = Some(12 << 30);
        let mut cordoned = worker("w2");
        cordoned.state = WorkerState::Cordoned;
        cordoned.hold = Some(Hold { until: at(7300), ..hold("cordon", "new disk") });
        let mut draining = worker("w3");
        draining.state = WorkerState::Draining;
        draining.hold = Some(Hold { stop_at: at(1900), ..hold("drain", "") });
        draining.jobs.push(running("image@linux/amd64"));
        let mut retired = worker("w4");
        (retired.state, retired.connected, retired.hold) = (WorkerState::Retired, false, Some(hold("retire", "sold")));
        let mut sick = worker("w5");
        sick.state = WorkerState::Quarantined;
        sick.quarantine = Some(Quarantine { losses: 3, until: at(160) });
        let mut stopping = worker("w6");
        stopping.state = WorkerState::Stopping;
        let now = at(100).unwrap();
        assert_eq!(sentence(&draining, now), "w3 is draining by olga; stops what runs in 30m 0s; 1 job runs there");
        assert_eq!(sentence(&retired, now), "w4 is retired, offline by olga: sold; nothing runs there");
        assert_eq!(still_running(&draining), "w3 still runs mini/1 image@linux/amd64");
        let text = workers(&[pooled, cordoned, draining, retired, sick, stopping], now).render(Style::PLAIN);
        assert_eq!(
            text,
            "\
WORKER  STATE             POOL  PLATFORMS    LABELS   SLOTS  CPU     MEMORY       DISK  DISK FREE  JOBS                      LAST SEEN  WHY
w1      online            big   linux/amd64  kvm=yes    0/2  0/2  0/8.0 GiB  0/100 GiB     12 GiB                            2s ago
w2      cordoned                linux/amd64             0/2  0/2  0/8.0 GiB  0/100 GiB                                       2s ago     by olga: new disk; ends in 2h 0m
w3      draining                linux/amd64             0/2  0/2  0/8.0 GiB  0/100 GiB             mini/1 image@linux/amd64  2s ago     by olga; stops what runs in 30m 0s
w4      retired, offline        linux/amd64             0/2  0/2  0/8.0 GiB  0/100 GiB                                       2s ago     by olga: sold
w5      quarantined             linux/amd64             0/2  0/2  0/8.0 GiB  0/100 GiB                                       2s ago     3 losses in a row, may try one job in 1m 0s
w6      stopping                linux/amd64             0/2  0/2  0/8.0 GiB  0/100 GiB                                       2s ago     its process ends when its jobs have
"
        );
    }
}
