//! Groups as a state machine: no clock, no network.

use super::*;

const SESSION: Duration = Duration::from_secs(10);

struct Scene {
    groups: Groups,
    begun: Instant,
    after: Duration,
    ids: u32,
    skips_assignment: bool,
    metadata: Bytes,
}

impl Scene {
    fn new() -> Scene {
        let limits = Limits {
            groups_max: 2,
            members_max: 3,
            session_timeout_min: Duration::from_secs(1),
            session_timeout_max: Duration::from_secs(60),
            initial_rebalance_delay: Duration::ZERO,
        };
        Scene {
            groups: Groups::new(limits),
            begun: Instant::now(),
            after: Duration::ZERO,
            ids: 0,
            skips_assignment: false,
            metadata: Bytes::from_static(b"topics"),
        }
    }

    fn now(&self) -> Instant {
        self.begun + self.after
    }

    fn pass(&mut self, time: Duration) {
        self.after += time;
        self.groups.tick(self.now());
    }

    fn join(&mut self, member: &str, instance: Option<&str>) -> Reply<JoinAnswer> {
        self.ids += 1;
        let join = Join {
            group: "g".to_owned(),
            member: member.to_owned(),
            instance: instance.map(str::to_owned),
            client: "c".to_owned(),
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), self.metadata.clone())],
            session_timeout: SESSION,
            rebalance_timeout: SESSION * 2,
            asks_twice: false,
            skips_assignment: self.skips_assignment,
        };
        let (id, now) = (format!("m{}", self.ids), self.now());
        self.groups.join(join, id, now)
    }

    fn sync(&mut self, joined: &Joined, assign: &[(&str, &'static str)]) -> Reply<SyncAnswer> {
        let assignments = assign.iter().map(|(id, what)| ((*id).to_owned(), Bytes::from_static(what.as_bytes())));
        let claim = Claim { member: &joined.member, instance: None, generation: joined.generation };
        let now = self.now();
        self.groups.sync("g", claim, assignments.collect(), now)
    }

    fn beat(&mut self, joined: &Joined) -> Result<(), ResponseError> {
        let claim = Claim { member: &joined.member, instance: None, generation: joined.generation };
        let now = self.now();
        self.groups.heartbeat("g", claim, now)
    }

    /// Two members, the first of which leads, both assigned.
    fn pair(&mut self, instances: [Option<&str>; 2]) -> (Joined, Joined) {
        let first = there(self.join("", instances[0])).unwrap();
        let second = self.join("", instances[1]);
        assert_eq!(self.beat(&first), Err(ResponseError::RebalanceInProgress));
        let first = there(self.join(&first.member, instances[0])).unwrap();
        let second = there(second).unwrap();
        assert_eq!(first.members.len(), 2, "the leader learns of everyone");
        let waiting = self.sync(&second, &[]);
        let (one, two) = (first.member.clone(), second.member.clone());
        assert_eq!(there(self.sync(&first, &[(&one, "A"), (&two, "B")])).unwrap().assignment, "A");
        assert_eq!(there(waiting).unwrap().assignment, "B");
        (first, second)
    }
}

/// The answer, which must be there.
fn there<T>(reply: Reply<T>) -> T {
    match reply {
        Reply::Now(answer) => answer,
        Reply::Later(mut receiver) => receiver.try_recv().expect("the answer is there"),
    }
}

#[test]
fn two_members_share_a_generation_and_a_silent_one_is_taken_out() {
    let mut scene = Scene::new();
    let (first, second) = scene.pair([None, None]);
    assert_eq!(first.generation, second.generation);
    scene.pass(SESSION - Duration::from_secs(1));
    scene.beat(&first).unwrap();
    scene.pass(Duration::from_secs(2));
    assert_eq!(scene.beat(&second), Err(ResponseError::UnknownMemberId));
    assert_eq!(scene.beat(&first), Err(ResponseError::RebalanceInProgress));
    let first = there(scene.join(&first.member, None)).unwrap();
    assert_eq!(first.members.len(), 1);
}

#[test]
fn a_static_member_comes_back_in_the_same_generation_and_fences_its_old_self() {
    for returning in [0, 1] {
        let mut scene = Scene::new();
        let names = ["one", "two"];
        let pair = scene.pair(names.map(Some));
        let old = [pair.0, pair.1][returning].clone();
        let back = there(scene.join("", Some(names[returning]))).unwrap();
        assert_eq!((back.generation, back.leader == back.member), (old.generation, false));
        let assignment = there(scene.sync(&back, &[])).unwrap().assignment;
        assert_eq!(assignment, ["A", "B"][returning]);
        let claim = Claim { member: &old.member, instance: Some(names[returning]), generation: old.generation };
        let now = scene.now();
        assert_eq!(scene.groups.heartbeat("g", claim, now), Err(ResponseError::FencedInstanceId));
    }
}

#[test]
fn a_static_leader_that_comes_back_is_told_that_the_assignment_stays() {
    let mut scene = Scene::new();
    scene.skips_assignment = true;
    let (first, _) = scene.pair([Some("one"), Some("two")]);
    let again = there(scene.join("", Some("one"))).unwrap();
    assert_eq!((again.generation, again.members.len()), (first.generation, 2));
    assert!(again.skip_assignment && again.leader == again.member && again.member != first.member);
    assert_eq!(there(scene.sync(&again, &[])).unwrap().assignment, "A");
}

/// A consumer's metadata: the topics that it wants, and the generation that it knew.
fn subscribed(topic: &'static str, generation: i32) -> Bytes {
    use kafka_protocol::messages::ConsumerProtocolSubscription;
    use kafka_protocol::protocol::{Encodable as _, StrBytes};
    let subscription = ConsumerProtocolSubscription::default().with_topics(vec![StrBytes::from_static_str(topic)]);
    let mut bytes = bytes::BytesMut::from(&2_i16.to_be_bytes()[..]);
    subscription.with_generation_id(generation).encode(&mut bytes, 2).unwrap();
    bytes.freeze()
}

#[test]
fn a_static_member_that_wants_the_same_topics_comes_back_quietly_and_one_that_wants_others_does_not() {
    let mut scene = Scene::new();
    scene.metadata = subscribed("t", 5);
    let (_, second) = scene.pair([Some("one"), Some("two")]);
    scene.metadata = subscribed("t", -1);
    let back = there(scene.join("", Some("two"))).unwrap();
    assert_eq!(back.generation, second.generation);
    assert!(scene.beat(&back).is_ok());
    scene.metadata = subscribed("another", -1);
    assert!(matches!(scene.join("", Some("two")), Reply::Later(_)), "the others join a new generation");
}

#[test]
fn a_member_that_does_not_rejoin_in_time_is_left_behind() {
    let mut scene = Scene::new();
    let (first, second) = scene.pair([None, None]);
    let third = scene.join("", None);
    let rejoined = scene.join(&first.member, None);
    // The second goes on to say that it lives, but does not join.
    for _ in 0..3 {
        scene.pass(SESSION - Duration::from_secs(1));
        let _ = scene.beat(&second);
    }
    assert_eq!(there(rejoined).unwrap().members.len(), 2);
    assert!(there(third).is_ok());
    assert_eq!(scene.beat(&second), Err(ResponseError::UnknownMemberId));
}

#[test]
fn only_members_of_the_present_generation_commit() {
    let mut scene = Scene::new();
    let now = scene.now();
    let stranger = Claim { member: "", instance: None, generation: -1 };
    assert_eq!(scene.groups.may_commit("g", stranger, now), Ok(()), "an empty group is open to all");
    let (first, _) = scene.pair([None, None]);
    let claim = |generation: i32| Claim { member: &first.member, instance: None, generation };
    assert_eq!(scene.groups.may_commit("g", claim(first.generation), now), Ok(()));
    let old = first.generation - 1;
    assert_eq!(scene.groups.may_commit("g", claim(old), now), Err(ResponseError::IllegalGeneration));
    assert_eq!(scene.groups.may_commit("g", stranger, now), Err(ResponseError::UnknownMemberId));
    assert_eq!(scene.groups.delete("g"), Err(ResponseError::NonEmptyGroup));
}

#[test]
fn groups_and_members_are_bounded_and_empty_groups_forgotten() {
    let mut scene = Scene::new();
    let joined: Vec<_> = (0..3).map(|_| scene.join("", None)).collect();
    let error = there(scene.join("", None)).unwrap_err().error;
    assert_eq!(error, ResponseError::GroupMaxSizeReached);
    drop(joined);
    for _ in 0..5 {
        scene.pass(SESSION * 3);
    }
    assert!(scene.groups.get("g").is_none());
}
