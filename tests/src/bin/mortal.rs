//! Processors with toy stages as a process of their own, for tests of what happens when it dies. It is given the address
//! of a log and the file of its contexts, and ends in an orderly way when its standard input is closed.

use std::io::Read as _;
use std::path::Path;

use store::context::Contexts;
use store::log::Kafka;
use tests::role::{Role, Setup};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, path] = &arguments[..] else { panic!("give it the address of a log and a file of contexts") };
    let kafka = Kafka { bootstrap: bootstrap.clone(), client_id: "mortal".to_owned(), ..Kafka::default() };
    let contexts = Contexts::open(Path::new(path)).await.expect("open the contexts");
    let contexts = tests::cached(contexts, path).await;
    let role = Role::start_on(&kafka, &contexts, &Setup::named("0"));
    let told = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    told.await.expect("standard input can be waited for").expect("standard input can be read");
    role.stop().await.expect("it ends in an orderly way");
}
