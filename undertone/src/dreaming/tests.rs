//! Dreams by an endpoint: a server process of its own that speaks the protocol.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::config::Config;

/// Answers every question with what it was told to say, the first time with a word of the list; says what it was asked.
const SERVER: &str = r#"
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.asked += 1
        user = body["messages"][1]["content"]
        first = "A sn\u00ecbb of light\n" if Handler.asked == 1 else ""
        text = first + "Line one\x07 of %s\n\n" % self.headers.get("Authorization") + user + "\n" + "\n".join("more and more" for _ in range(9))
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(200 if self.path == "/v1/chat/completions" else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started() -> (Server, String) {
    let mut child = Command::new("python3")
        .args(["-c", SERVER])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is there, as the build needs it");
    let mut port = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut port).expect("it says its port");
    (Server(child), format!("http://127.0.0.1:{}/v1", port.trim()))
}

#[tokio::test]
async fn an_endpoint_takes_the_decoders_place_and_passes_the_same_list() {
    let dir = tempfile::tempdir().expect("a folder");
    let words = dir.path().join("words.txt");
    std::fs::write(&words, "snib\nhidden\n").expect("it is written");
    let (server, url) = started();
    let mut config = Config::at(dir.path());
    config.dreams.generator = DreamsBy::Openai;
    config.dreams.blocked_words = words;
    config.generator =
        toml::from_str(&format!("url = {url:?}\nmodel = \"m\"\napi_key = \"k\"\nrequest_ms_max = 20000"))
            .expect("settings");
    let dreaming = Dreaming::new(config);
    let wishes = Wishes {
        steering: vec!["emotion joy".to_owned(), "colour blue".to_owned()],
        about: vec!["garden".to_owned(), "hidden".to_owned()],
    };
    let dreamt = dreaming.of(wishes.clone(), 1, 0).await.expect("it answers").expect("the second try is admitted");
    assert_eq!(dreamt.text.lines().count(), 4, "{}", dreamt.text);
    assert!(dreamt.text.starts_with("Line one of Bearer k\n"), "{}", dreamt.text);
    assert!(dreamt.text.contains("joy") && dreamt.text.contains("about: garden."), "{}", dreamt.text);
    assert!(!dreamt.text.contains("hidden") && !dreamt.text.contains("sn"), "{}", dreamt.text);
    assert_eq!((dreamt.provenance.model.as_str(), dreamt.provenance.version.as_str()), ("m", "openai"));
    drop(server);
    let error = format!("{:#}", dreaming.of(wishes, 1, 0).await.expect_err("it is gone"));
    assert!(error.contains("is it running"), "{error}");
}
