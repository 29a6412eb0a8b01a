use super::*;
use railyard_service::clock::SystemClock;
use std::fs;

fn open(dir: &Path) -> Audit {
    Audit::open(dir, Arc::new(SystemClock)).unwrap()
}

/// Every record in the files, in order.
pub(super) fn records(dir: &Path) -> Vec<Record> {
    let segments =
        files::segments(dir).unwrap().into_iter().map(|first| fs::read_to_string(files::segment(dir, first)));
    let lines = segments.flat_map(|text| text.unwrap().lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| record::read(line.as_bytes()).unwrap()).collect()
}

fn whats(dir: &Path) -> Vec<String> {
    records(dir).into_iter().map(|record| record.what).collect()
}

#[tokio::test]
async fn a_record_is_in_the_file_when_its_writer_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for n in 1..=3 {
        audit.record(Entry::new(Act::Submit).target(format!("mini/{n}"))).await.unwrap();
        let found = records(dir.path());
        assert_eq!((found.len(), found[n - 1].target.as_str()), (n, format!("mini/{n}").as_str()));
        assert_eq!(audit.head().to_string(), format!("{n}:{}", found[n - 1].hash));
    }
    audit.close(Entry::new(Act::Stop)).await.unwrap();
    assert!(matches!(audit.ready(), Err(AuditError::Stopping)));
    assert!(matches!(audit.record(Entry::new(Act::Submit)).await, Err(AuditError::Stopping)));
    let again = open(dir.path());
    again.record(Entry::new(Act::Start)).await.unwrap();
    assert_eq!(whats(dir.path()), ["submit", "submit", "submit", "stop", "start"]);
}
