//! Steps that try to reach what they must not, by real sockets: each test has a worker whose settings let them, to see that
//! they would.

use crate::engine::{base_image, runtime};
use crate::farm::Farm;
use crate::faulty::{Faults, Faulty};
use crate::order::order;
use railyard_common::order::Order;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_worker::network::peer::{Allowed, Denied};
use railyard_worker::network::{Controller, Guard, MayNotPull, NetworkConfig, Unguarded};
use railyard_worker::runtime::Runtime as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// What a listener says to whoever reaches it.
const HELLO: &str = "reached";

/// Where all of them listen.
const PORT: u16 = 7999;

/// An address for each of this machine's networks that a cloud's metadata could have; none that a real one has.
const METADATA: &str = "169.254.77.77";

/// Where one cloud has it outside of the link's own addresses.
const OTHER_METADATA: &str = "192.0.0.192";

/// An address that is like any other.
const ELSEWHERE: &str = "198.18.77.2";

/// A network namespace behind this machine: the world that steps may reach, with a cloud's metadata service in it.
struct World {
    name: String,
    listener: Option<Listener>,
}

fn run(words: &str) {
    let mut words = words.split(' ');
    let output = Command::new(words.next().unwrap()).args(words.clone()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Says hello on the port, for as long as it lives.
struct Listener(Child);

impl Listener {
    fn start(prefix: &[&str]) -> Self {
        let port = PORT.to_string();
        let words = [prefix, &["busybox", "nc", "-ll", "-p", &port, "-e", "echo", HELLO]].concat();
        Self(Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    fn make() -> Self {
        let mut bytes = [0; 3];
        getrandom::fill(&mut bytes).unwrap();
        // What is made goes again, also if something of it cannot be.
        let mut world = Self { name: format!("ryt{}", hex::encode(bytes)), listener: None };
        let name = &world.name;
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add {name} type veth peer name inside netns {name}"));
        run(&format!("ip addr add 198.18.77.1/24 dev {name}"));
        run(&format!("ip link set {name} up"));
        for words in [
            format!("addr add {ELSEWHERE}/24 dev inside"),
            format!("addr add {METADATA}/32 dev inside"),
            format!("addr add {OTHER_METADATA}/32 dev inside"),
            "link set inside up".to_owned(),
            "route add default via 198.18.77.1".to_owned(),
        ] {
            run(&format!("ip -n {name} {words}"));
        }
        run(&format!("ip route add {METADATA}/32 via {ELSEWHERE}"));
        run(&format!("ip route add {OTHER_METADATA}/32 via {ELSEWHERE}"));
        world.listener = Some(Listener::start(&["ip", "netns", "exec", name.as_str()]));
        world
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.listener = None;
        let _ = Command::new("ip").args(["link", "del", &self.name]).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Addresses of this machine that are no loopback's.
fn own_addresses() -> Vec<String> {
    let output = Command::new("ip").args(["-4", "-o", "addr"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // Networks of steps that other tests have made are none of this one's.
    let lines = text.lines().filter(|line| !line.contains(": ry-"));
    let words = lines.filter_map(|line| line.split_whitespace().nth(3)?.split('/').next());
    words.filter(|address| !address.starts_with("127.")).map(str::to_owned).collect()
}

/// A job with a network that tries all of these, and its own gateway.
fn explorer(job: u64, image: &str, addresses: &[String]) -> Order {
    let script = format!(
        "try() {{ if [ \"$(busybox nc -w 2 $2 {PORT} </dev/null 2>/dev/null)\" = {HELLO} ]; then echo \"$1: reached\"; \
         else echo \"$1: not reached\"; fi; }}\n\
         try gateway $(busybox ip route | busybox awk '/^default/ {{ print $3 }}')\n\
         for address in {}; do try $address $address; done",
        addresses.join(" ")
    );
    let mut order = order(job, image, &script);
    Arc::make_mut(&mut order.run).network_none = false;
    order
}

/// What it found, without the word behind it.
fn reached(log: &str) -> Vec<&str> {
    log.lines().filter_map(|line| line.strip_suffix(": reached")).collect()
}

/// A network that only one test's settings have. It goes with the test.
struct OwnNetwork(String);

impl OwnNetwork {
    fn of(config: &NetworkConfig) -> Self {
        Self(Guard::new(config, None).name().to_owned())
    }
}

impl Drop for OwnNetwork {
    fn drop(&mut self) {
        let id = self.0.trim_start_matches("railyard-");
        let _ = Command::new("docker").args(["network", "rm", &self.0]).status();
        for program in ["iptables", "ip6tables"] {
            for words in [
                format!("-D PREROUTING -i ry-{id} -j RAILYARD-{id}"),
                format!("-F RAILYARD-{id}"),
                format!("-X RAILYARD-{id}"),
            ] {
                let _ = Command::new(program).args(["--wait", "10", "-t", "mangle"]).args(words.split(' ')).status();
            }
        }
    }
}

fn iptables(args: &[&str]) -> String {
    let output = Command::new("iptables").args(["--wait", "10", "-t", "mangle"]).args(args).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_reaches_the_world_and_neither_its_host_nor_metadata() {
    let (farm, image) = (Farm::start().await, base_image().await);
    let _world = World::make();
    let _here = Listener::start(&[]);
    let own = own_addresses();
    let world = [METADATA, OTHER_METADATA, ELSEWHERE].map(str::to_owned);
    let everything = [own.clone(), world.to_vec()].concat();

    let mut open = farm.config();
    open.network = NetworkConfig { deny: Vec::new(), ..NetworkConfig::default() };
    let _open = OwnNetwork::of(&open.network);
    let worker = farm.worker_with(open).await;
    let ended = farm.run(&explorer(1, &image, &everything)).await;
    ended.expect_success();
    assert_eq!(reached(&ended.log), everything, "without rules all is reached but other steps: {}", ended.log);
    worker.stop().await;

    let worker = farm.worker().await;
    let ended = farm.run(&explorer(2, &image, &everything)).await;
    ended.expect_success();
    assert_eq!(reached(&ended.log), [ELSEWHERE], "{}", ended.log);
    // Somebody flushes the packet filter: the next step finds it as it was.
    let chains = iptables(&["-S", "PREROUTING"]);
    let jumps = chains.lines().filter(|line| line.contains("-j RAILYARD-")).map(|line| line.replacen("-A", "-D", 1));
    for jump in jumps.collect::<Vec<_>>() {
        iptables(&jump.split(' ').collect::<Vec<_>>());
    }
    let ended = farm.run(&explorer(3, &image, &everything)).await;
    assert_eq!(reached(&ended.log), [ELSEWHERE], "{}", ended.log);
    worker.stop().await;

    let mut exception = farm.config();
    let allow = |text: String| Allowed::try_from(text).unwrap();
    exception.network.allow = vec![allow(format!("{METADATA}:{PORT}")), allow(format!("{}:1", own[0]))];
    exception.network.deny.push(Denied::try_from("198.18.77.0/24".to_owned()).unwrap());
    let _exception = OwnNetwork::of(&exception.network);
    let worker = farm.worker_with(exception).await;
    let ended = farm.run(&explorer(4, &image, &everything)).await;
    assert_eq!(reached(&ended.log), [METADATA], "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;

    // The controller of another host, at its port; what else that host offers is reached.
    let engine = runtime().await;
    for (port, is_reached) in [(PORT, false), (PORT + 1, true)] {
        let controller = Controller::of(&format!("https://{ELSEWHERE}:{port}"));
        let guard = Guard::new(&NetworkConfig::default(), controller);
        let network = OwnNetwork(guard.name().to_owned());
        guard.ensure(&*engine).await.unwrap();
        let mut step = Command::new("docker");
        step.args(["run", "--rm", "--network", &network.0, &image, "busybox", "nc", "-w", "2", ELSEWHERE]);
        let said = String::from_utf8(step.arg(PORT.to_string()).output().unwrap().stdout).unwrap();
        assert_eq!(said.trim() == HELLO, is_reached, "{port}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_knowing_where_the_controller_is_there_is_no_network() {
    let guard = Guard::new(&NetworkConfig::default(), Controller::of("https://nowhere.invalid:7411"));
    let error = guard.ensure(&*runtime().await).await.unwrap_err().to_string();
    assert!(error.contains("the controller's name nowhere.invalid cannot be looked up"), "{error}");
    let pulled = guard.may_pull("192.0.2.1/x").await;
    assert!(matches!(&pulled, Err(MayNotPull::NotNow(why)) if why.contains("nowhere.invalid")), "{pulled:?}");

    // All the other rules are there, where the settings let steps run without any.
    let config = NetworkConfig { unguarded: Unguarded::Allow, ..NetworkConfig::default() };
    let guard = Guard::new(&config, Controller::of("https://nowhere.invalid:7411"));
    let network = OwnNetwork(guard.name().to_owned());
    assert_eq!(guard.ensure(&*runtime().await).await.unwrap(), network.0);
    let rules = iptables(&["-S", &network.0.replace("railyard-", "RAILYARD-")]);
    assert!(rules.contains("--dst-type LOCAL -j DROP") && rules.contains("-d 169.254.0.0/16 -j DROP"), "{rules}");
    guard.may_pull("192.0.2.1/x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_do_not_reach_each_other_and_names_are_found() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let script = format!(
        "busybox ip -4 -o addr show eth0 | busybox awk '{{ print \"address \" $4 \" .\" }}'\n\
         exec busybox nc -ll -p {PORT} -e echo {HELLO}"
    );
    let mut server = order(1, &image, &script);
    Arc::make_mut(&mut server.run).network_none = false;
    Arc::make_mut(&mut server.run).timeout_secs = 15;
    farm.send(&server).await;
    farm.logged(server.lease, " .\n").await;
    let log = farm.log(server.lease);
    let address = log.split_once("address ").unwrap().1.split('/').next().unwrap().to_owned();
    let ended = farm.run(&explorer(2, &image, &[address])).await;
    ended.expect_success();
    assert_eq!(reached(&ended.log), Vec::<&str>::new(), "{}", ended.log);
    // The engine's own resolver knows this machine's containers by name: it answers.
    let mut names = order(3, &image, "busybox nslookup $(cat /etc/hostname) || cat /etc/resolv.conf | grep nameserver");
    Arc::make_mut(&mut names.run).network_none = false;
    farm.run(&names).await.expect_success();
    farm.ended(server.lease).await.expect(OutcomeKind::TimedOut, Reason::WallClock, "timeout");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_cannot_pretend_to_its_neighbours_to_be_somebody_else() {
    let farm = Farm::start().await;
    let mut config = farm.config();
    config.allow = vec!["capabilities:NET_RAW".parse().unwrap()];
    let worker = farm.worker_with(config).await;
    let script = "\
        gateway=$(busybox ip route | busybox awk '/^default/ { print $3 }')
        busybox arping -c 1 -w 1 -I eth0 $gateway 2>&1 || true";
    let image = base_image().await;
    let tries = async |job, capabilities: &[&str]| {
        let mut order = order(job, &image, script);
        let run = Arc::make_mut(&mut order.run);
        run.network_none = false;
        run.capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
        let ended = farm.run(&order).await;
        ended.expect_success();
        ended.log
    };
    // Packets of its own making go out only for a step that an operator lets do that.
    let log = tries(1, &["default", "NET_RAW"]).await;
    assert!(log.contains("Sent 1 probe"), "{log}");
    for (job, capabilities) in [(2, &["default"][..]), (3, &[])] {
        let log = tries(job, capabilities).await;
        assert!(log.contains("Operation not permitted") && !log.contains("Sent"), "{capabilities:?}: {log}");
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rules_a_step_with_a_network_is_given_back() {
    let farm = Farm::start().await;
    let mut config = farm.config();
    config.network.deny.push(Denied::try_from("192.0.2.99".to_owned()).unwrap());
    let worker = farm.faulty_worker(config, Faults { network_elsewhere: true, ..Faults::default() }).await;
    let image = base_image().await;
    let ended = farm.run(&explorer(1, &image, &[])).await;
    ended.expect(OutcomeKind::Refused, Reason::Unsupported, "unguarded = \"allow\"");
    assert!(ended.outcome.message.contains("a network that this worker does not see"), "{:?}", ended.outcome);
    farm.run(&order(2, &image, "true")).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_killed_while_the_rules_are_made_is_asked_again() {
    // Settings that nobody has had, so that there is no such bridge yet.
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).unwrap();
    let mut config = NetworkConfig::default();
    config.deny.push(Denied::try_from(format!("198.19.{}.{}", bytes[0], bytes[1])).unwrap());
    let guard = Guard::new(&config, None);
    let faults = Faults { network_of_before: 1.into(), ..Faults::default() };
    let engine = Faulty { engine: runtime().await, faults };
    assert_eq!(guard.ensure(&engine).await.unwrap(), guard.name());
    engine.remove_network(guard.name()).await.unwrap();

    // One that goes on to say the same is believed.
    let faults = Faults { network_of_before: 2.into(), ..Faults::default() };
    let engine = Faulty { engine: runtime().await, faults };
    let error = guard.ensure(&engine).await.unwrap_err().to_string();
    assert!(error.contains("a network that this worker does not see"), "{error}");
}
