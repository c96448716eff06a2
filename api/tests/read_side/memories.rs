//! Memories and the palace over HTTP: what is asked for, what is answered, and what is refused.

use std::sync::{Arc, Mutex};

use api::Config;
use api::memories::{
    Asked, Forget, Found, Held, Memories, MemoriesError, Palace, Pending, Place, Recalled, Receipt, Show, Why,
};
use schemas::Turn;

use crate::site::{Site, turns};

/// Answers what it is told to, and notes what it was asked.
#[derive(Debug, Default)]
struct Noting(Mutex<Vec<String>>);

impl Memories for Noting {
    fn recall<'a>(&'a self, conversation: &'a str, asked: Asked<'a>) -> Pending<'a, Recalled> {
        let Asked { question, asker, limit, show } = asked;
        self.0.lock().unwrap().push(format!("{conversation} {question} {asker:?} {limit} {show:?}"));
        Box::pin(async move {
            match question {
                "unknown" => Err(MemoriesError::UnknownConversation),
                "?" => Err(MemoriesError::EmptyQuestion),
                "models" => Err(MemoriesError::NoModels("none are loaded")),
                _ => Ok(recalled(conversation)),
            }
        })
    }

    fn forget<'a>(&'a self, what: Forget<'a>) -> Pending<'a, Option<Receipt>> {
        self.0.lock().unwrap().push(format!("{what:?}"));
        Box::pin(async move {
            match what {
                Forget::Person("test:nobody") => Ok(None),
                Forget::Conversation("broken") => Err(MemoriesError::Forget("the log is away".to_owned())),
                _ => {
                    let places = vec![Held::erased("history"), Held::expires("log", "2030-01-01T00:00:00Z".to_owned())];
                    Ok(Some(Receipt::new("id", "now".to_owned(), "it".to_owned(), 3, vec!["c".to_owned()], places)))
                }
            }
        })
    }

    fn let_go(&self, conversations: &[String]) {
        self.0.lock().unwrap().push(format!("let go {conversations:?}"));
    }

    fn palace<'a>(&'a self, conversation: &'a str, loci_max: usize, show: Show) -> Pending<'a, Palace> {
        self.0.lock().unwrap().push(format!("{conversation} {loci_max} {show:?}"));
        Box::pin(async move { Ok(Palace { conversation: conversation.to_owned(), memories: 0, rooms: Vec::new() }) })
    }
}

fn recalled(conversation: &str) -> Recalled {
    let why = Why { words: 0.5, vector: 0.25, around: 0.0, session: 0.0, speaker: 0.0, length: 0.0, time: 0.0 };
    let found = Found {
        conversation: conversation.to_owned(),
        position: 7,
        id: "id".to_owned(),
        at: 1,
        sender: None,
        name: None,
        text: "we met in Rome".to_owned(),
        salience: 0.5,
        locus: Place { room: 1, name: None, shown: false, place: 2 },
        score: 0.75,
        why,
        terms: vec!["rome".to_owned()],
    };
    Recalled { conversation: conversation.to_owned(), scope: "conversation", searched: 9, memories: vec![found] }
}

#[tokio::test]
async fn what_is_asked_is_passed_on_and_the_answer_says_why() {
    let mut site = Site::start(Config::default()).await;
    let noting = Arc::new(Noting::default());
    site.remember(noting.clone()).await;
    let base = "/v1/conversations/telegram%3Ahelper%3A42";
    let (status, found) = site.get(&format!("{base}/memories?q=where%20did%20we%20meet")).await;
    assert_eq!((status, &found["memories"][0]["why"]["vector"], &found["searched"]), (200, &0.25.into(), &9.into()));
    assert_eq!(found["memories"][0]["locus"]["shown"], false);
    site.get(&format!("{base}/memories?q=x&asker=ann&limit=3&sensitive=1")).await;
    assert_eq!(site.get(&format!("{base}/palace")).await.0, 200);
    site.get(&format!("{base}/palace?limit=1000&sensitive=1")).await;
    let expected = [
        "telegram:helper:42 where did we meet None 10 Usual",
        "telegram:helper:42 x Some(\"ann\") 3 All",
        "telegram:helper:42 20 Usual",
        "telegram:helper:42 1000 All",
    ];
    assert_eq!(*noting.0.lock().unwrap(), expected);
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_the_mend() {
    let mut site = Site::start(Config::default()).await;
    let nobody = site.get("/v1/conversations/c/memories?q=x").await;
    assert_eq!((nobody.0, &nobody.1["code"]), (503, &"recall_unavailable".into()));
    let noting = Arc::new(Noting::default());
    site.remember(noting.clone()).await;
    let long = |bytes: usize| "x".repeat(bytes);
    for path in [
        "memories".to_owned(),
        "memories?q=%20".to_owned(),
        format!("memories?q={}", long(2049)),
        format!("memories?q=x&asker={}", long(257)),
        "memories?q=x&limit=0".to_owned(),
        "memories?q=x&limit=101".to_owned(),
        "memories?q=x&sensitive=maybe".to_owned(),
        "palace?limit=1001".to_owned(),
    ] {
        let (status, problem) = site.get(&format!("/v1/conversations/c/{path}")).await;
        assert_eq!((status, &problem["code"]), (400, &"bad_parameter".into()), "{path}");
    }
    let unknown = site.get(&format!("/v1/conversations/{}/palace", long(1025))).await;
    assert_eq!((unknown.0, &unknown.1["code"]), (404, &"unknown_conversation".into()));
    assert!(noting.0.lock().unwrap().is_empty(), "nothing of it was passed on");
    for (question, status, code) in
        [("unknown", 404, "unknown_conversation"), ("%3F", 400, "bad_parameter"), ("models", 503, "recall_unavailable")]
    {
        let (found, problem) = site.get(&format!("/v1/conversations/c/memories?q={question}")).await;
        assert_eq!((found, &problem["code"]), (status, &code.into()), "{question}");
        assert!(problem["mend"].as_str().is_some_and(|mend| !mend.is_empty()));
    }
}

#[tokio::test]
async fn what_is_forgotten_is_answered_by_a_receipt_and_leaves_the_memory_of_the_process() {
    let mut site = Site::start(Config::default()).await;
    let noting = Arc::new(Noting::default());
    site.remember(noting.clone()).await;
    site.keep(&turns("c", 1..=3)).await;
    let positions = async || site.get("/v1/conversations/c/turns").await.1["turns"].as_array().map(Vec::len);
    assert_eq!(positions().await, Some(3));
    site.history.erase_turns("c", vec![2]).await.unwrap();
    assert_eq!(positions().await, Some(3), "the page is believed for a while");
    let (status, receipt) = site.delete("/v1/conversations/c/memories/2").await;
    assert_eq!((status, &receipt["complete"], &receipt["turns"]), (200, &false.into(), &3.into()));
    assert_eq!(receipt["places"][1]["until"], "2030-01-01T00:00:00Z");
    assert_eq!(positions().await, Some(2));
    for (path, status) in [
        ("/v1/conversations/c", 200),
        ("/v1/conversations/c/rooms/7", 200),
        ("/v1/people/test%3Aann", 200),
        ("/v1/people/test%3Anobody", 404),
        ("/v1/conversations/broken", 503),
        ("/v1/conversations/c/rooms/x", 400),
        ("/v1/conversations/c/memories/0", 400),
    ] {
        assert_eq!(site.delete(path).await.0, status, "{path}");
    }
    let let_go = "let go [\"c\"]";
    let expected = [
        "Memory { conversation: \"c\", position: 2 }",
        let_go,
        "Conversation(\"c\")",
        let_go,
        "Room { conversation: \"c\", room: 7 }",
        let_go,
        "Person(\"test:ann\")",
        let_go,
        "Person(\"test:nobody\")",
        "Conversation(\"broken\")",
    ];
    assert_eq!(*noting.0.lock().unwrap(), expected);
}

#[tokio::test]
async fn another_process_that_forgets_is_heard_through_the_log() {
    let mut site = Site::start(Config::default()).await;
    let noting = Arc::new(Noting::default());
    site.remember(noting.clone()).await;
    let mark = Turn { kind: schemas::erasure::ERASURE.to_owned(), ..turns("c", 4..=4).remove(0) };
    site.say(&[mark]).await;
    let until = tokio::time::Instant::now() + tests::PATIENCE;
    while noting.0.lock().unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < until, "it is heard in time");
        tokio::task::yield_now().await;
    }
    assert_eq!(*noting.0.lock().unwrap(), ["let go [\"c\"]"]);
}
