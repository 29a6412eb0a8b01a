//! The session as scripts: what came in, what must happen.

use super::*;
use railyard_common::id::JobId;

const TTL: Duration = Duration::from_secs(120);

fn lease(job: u64) -> LeaseId {
    LeaseId { job: JobId(job), attempt: 1 }
}

fn at(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A session whose stream was opened at 0 s, with job 1 running since 1 s.
fn running() -> Session {
    let mut session = Session::new();
    assert!(session.handle_hello(at(0)).is_empty());
    assert_eq!(session.handle_order(at(1), lease(1), TTL), Verdict::Start);
    session.handle_phase(lease(1), Phase::Run);
    session
}

#[test]
fn an_order_is_started_once() {
    let mut session = running();
    assert_eq!(session.handle_order(at(2), lease(1), TTL), Verdict::Known);
    assert_eq!(session.handle_hello(at(3)), [lease(1)]);
    assert_eq!(session.handle_order(at(4), lease(1), TTL), Verdict::Known);
}

#[test]
fn without_an_ack_the_container_is_stopped_before_the_lease_expires() {
    let mut session = running();
    let fence = TTL - FENCE_MARGIN;
    assert_eq!(session.next_tick_at(), Some(fence), "counted from Hello: the grant came after that");
    assert_eq!(session.tick(fence - at(1)), []);
    assert_eq!(session.tick(fence), [Action::Fence { lease: lease(1), silent_for: fence }]);
    assert_eq!(session.tick(TTL), [], "once");
    assert_eq!(session.handle_hello(at(130)), [lease(1)], "its end is still to be reported");
}

#[test]
fn an_ack_counts_from_when_its_heartbeat_was_sent() {
    let mut session = running();
    let (first, named) = session.handle_beat(at(10));
    assert_eq!(named, [(lease(1), Phase::Run)]);
    let (second, _) = session.handle_beat(at(20));
    assert_eq!(session.handle_ack(first, &[]), []);
    assert_eq!(session.next_tick_at(), Some(at(10) + TTL - FENCE_MARGIN));
    session.handle_ack(second, &[]);
    assert_eq!(session.next_tick_at(), Some(at(20) + TTL - FENCE_MARGIN));
    session.handle_ack(first, &[]);
    session.handle_ack(999, &[]);
    assert_eq!(session.next_tick_at(), Some(at(20) + TTL - FENCE_MARGIN), "old and unknown acks change nothing");
}

#[test]
fn acks_of_an_old_stream_count_for_nothing() {
    let mut session = running();
    let (sequence, _) = session.handle_beat(at(50));
    session.handle_hello(at(60));
    assert_eq!(session.handle_ack(sequence, &[lease(1)]), [], "not even for a loss");
    assert_eq!(session.next_tick_at(), Some(TTL - FENCE_MARGIN));
}

#[test]
fn a_heartbeat_sent_before_the_order_does_not_renew_it() {
    let mut session = Session::new();
    session.handle_hello(at(0));
    let (sequence, named) = session.handle_beat(at(10));
    assert!(named.is_empty());
    session.handle_order(at(11), lease(1), TTL);
    session.handle_ack(sequence, &[]);
    assert_eq!(session.next_tick_at(), Some(TTL - FENCE_MARGIN));
}

#[test]
fn an_order_that_was_stuck_for_too_long_is_not_begun() {
    let mut session = Session::new();
    session.handle_hello(at(0));
    assert_eq!(session.handle_order(at(200), lease(1), TTL), Verdict::Late);
    assert!(session.is_idle());
}

#[test]
fn what_the_controller_lost_is_abandoned() {
    let mut session = running();
    session.handle_order(at(2), lease(2), TTL);
    session.handle_order(at(2), lease(3), TTL);
    let (sequence, _) = session.handle_beat(at(10));
    assert_eq!(session.handle_ack(sequence, &[lease(2)]), [Action::Abandon(lease(2))]);
    assert_eq!(session.handle_hello(at(20)), [lease(1), lease(3)]);
    assert_eq!(session.handle_welcome(&BTreeSet::from([lease(1)])), [Action::Abandon(lease(3))]);
    assert_eq!(session.handle_stale(lease(1)), [Action::Abandon(lease(1))]);
    assert_eq!(session.handle_stale(lease(1)), []);
    assert!(session.is_idle());
}

#[test]
fn a_cancel_is_passed_on_once_and_only_for_what_is_held() {
    let mut session = running();
    let cancel = Action::Cancel { lease: lease(1), reason: "by a person".into() };
    assert_eq!(session.handle_cancel(lease(9), "by a person".into()), []);
    assert_eq!(session.handle_cancel(lease(1), "by a person".into()), [cancel]);
    assert_eq!(session.handle_cancel(lease(1), "again".into()), []);
    session.handle_done(lease(1));
    assert!(session.is_idle());
}

#[test]
fn what_takes_its_time_to_stop_is_fenced_all_the_same() {
    let mut session = running();
    session.handle_cancel(lease(1), "by a person".into());
    let fence = TTL - FENCE_MARGIN;
    assert_eq!(session.next_tick_at(), Some(fence));
    assert_eq!(session.tick(fence), [Action::Fence { lease: lease(1), silent_for: fence }]);
    assert_eq!((session.next_tick_at(), session.tick(TTL)), (None, vec![]), "once");
    assert_eq!(session.handle_cancel(lease(1), "again".into()), []);
    assert_eq!(session.handle_hello(at(130)), [lease(1)], "its end is still to be reported");
}

#[test]
fn an_upload_has_no_container_to_fence() {
    let mut session = running();
    session.handle_phase(lease(1), Phase::Upload);
    assert_eq!((session.next_tick_at(), session.tick(at(1000))), (None, vec![]));
}

#[test]
fn short_leases_get_more_heartbeats_and_a_smaller_margin() {
    let mut session = running();
    assert_eq!(session.heartbeat_interval(at(10)), at(10));
    session.handle_order(at(2), lease(2), at(6));
    assert_eq!(session.heartbeat_interval(at(10)), at(1));
    assert_eq!(session.next_tick_at(), Some(Duration::from_millis(4500)));
}

#[test]
fn what_an_earlier_process_held_is_named_and_lives_from_its_last_confirmation() {
    let mut session = Session::new();
    session.adopt(lease(7), TTL, at(1000), Phase::Run);
    let fence = at(1000) + TTL - FENCE_MARGIN;
    assert_eq!(session.next_tick_at(), Some(fence));
    assert_eq!(session.handle_hello(at(1050)), [lease(7)]);
    assert_eq!(session.confirmed_at(lease(7)), Some(at(1000)), "a greeting confirms nothing");
    assert_eq!(session.handle_welcome(&BTreeSet::from([lease(7)])), []);
    assert_eq!(session.handle_order(at(1051), lease(7), TTL), Verdict::Known);
    let (beat, named) = session.handle_beat(at(1060));
    assert_eq!(named, [(lease(7), Phase::Run)]);
    session.handle_ack(beat, &[]);
    assert_eq!(session.confirmed_at(lease(7)), Some(at(1060)));
    assert_eq!(session.next_tick_at(), Some(at(1060) + TTL - FENCE_MARGIN));
}

#[test]
fn what_an_earlier_process_held_is_stopped_in_time_if_nobody_confirms_it() {
    let mut session = Session::new();
    session.adopt(lease(7), TTL, at(1000), Phase::Run);
    let fence = at(1000) + TTL - FENCE_MARGIN;
    assert_eq!(session.tick(fence), [Action::Fence { lease: lease(7), silent_for: TTL - FENCE_MARGIN }]);
}

#[test]
fn what_an_earlier_process_held_and_the_controller_gave_away_is_abandoned() {
    let mut session = Session::new();
    session.adopt(lease(7), TTL, at(1000), Phase::Upload);
    assert_eq!((session.next_tick_at(), session.tick(at(9000))), (None, vec![]), "an upload has no container");
    session.handle_hello(at(9000));
    assert_eq!(session.handle_welcome(&BTreeSet::new()), [Action::Abandon(lease(7))]);
    assert!(session.is_idle());
}

#[test]
fn a_short_lease_leaves_time_for_another_connection_before_its_fence() {
    let mut session = running();
    let asked = Duration::from_secs(2);
    assert_eq!(session.patience(asked), SILENCE_MIN, "a long lease has time");
    assert_eq!(session.handle_order(at(2), lease(2), at(12)), Verdict::Start);
    assert_eq!(session.patience(asked), at(4));
    assert!(session.patience(asked) >= session.heartbeat_interval(asked) * 2, "one lost heartbeat is no reason");
    session.handle_done(lease(2));
    assert_eq!(session.patience(at(5)), at(20), "nor is a controller that asks seldom");
}
