//! Memories and the palace over HTTP: what is asked for, what is answered, and what is refused.

use std::sync::{Arc, Mutex};

use api::Config;
use api::memories::{Asked, Found, Memories, MemoriesError, Palace, Pending, Place, Recalled, Show, Why};

use crate::site::Site;

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
