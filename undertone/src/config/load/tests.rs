//! What the settings promise to whoever writes them.

use secrecy::ExposeSecret;

use super::super::masked;
use super::*;

fn with_file(text: &str) -> Result<Config, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("undertone.toml");
    std::fs::write(&path, text).unwrap();
    load(Some(&path), [])
}

fn with_variable(name: &str, value: &str) -> Result<Config, Error> {
    load(None, [(name.to_owned(), value.to_owned())])
}

#[test]
fn defaults_are_complete_and_loopback_only() {
    let config = load(None, []).unwrap();
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8080");
    assert!(config.is_embedded());
    assert_eq!(config.context_path(), Path::new("data/contexts.sqlite"));
    config.check_only_machine().unwrap();
}

#[test]
fn variable_wins_over_file_and_file_over_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("undertone.toml");
    std::fs::write(&path, "[kafka]\ninstance = \"file\"\npartitions = 3\n").unwrap();
    let config = load(Some(&path), [("UNDERTONE__KAFKA__INSTANCE".into(), "env".into())]).unwrap();
    assert_eq!((config.kafka.instance.as_str(), config.kafka.partitions, config.kafka.replication), ("env", 3, 1));
}

#[test]
fn unknown_key_in_the_file_is_refused_with_the_nearest_name() {
    let message = with_file("[http]\nlistne = \"127.0.0.1:1\"\n").unwrap_err().to_string();
    assert!(message.contains("http.listne") && message.contains("did you mean http.listen?"), "{message}");
    let message = with_file("[htpt]\nlisten = \"127.0.0.1:1\"\n").unwrap_err().to_string();
    assert!(message.contains("did you mean http?"), "{message}");
    let message = with_file("[telegram.bots.helper]\nwebhook_secert = \"x\"\n").unwrap_err().to_string();
    assert!(message.contains("did you mean telegram.bots.helper.webhook_secret?"), "{message}");
}

#[test]
fn tasks_have_actions_of_any_label() {
    let file = "[dialogue.tasks.refund.actions]\nask_order = \"Which order?\"\ngoodbye_1 = \"Bye.\"\n";
    let config = with_file(file).unwrap();
    let actions: Vec<&String> = config.dialogue.tasks["refund"].actions.keys().collect();
    assert_eq!(actions, ["ask_order", "goodbye_1"]);
    let message = with_file("[dialogue.tasks.refund.action]\na = \"b\"\n").unwrap_err().to_string();
    assert!(message.contains("did you mean dialogue.tasks.refund.actions?"), "{message}");
    let message = with_file("[dialogue.tasks.refund]\nactions = [\"a\"]\n").unwrap_err().to_string();
    assert!(message.contains("dialogue.tasks.refund.actions") && message.contains("a table"), "{message}");
}

#[test]
fn unknown_variable_is_refused_with_the_nearest_name() {
    let message = with_variable("UNDERTONE__KAFKA__BOOTSTARP", "x").unwrap_err().to_string();
    assert!(message.starts_with("UNDERTONE__KAFKA__BOOTSTARP: "), "{message}");
    assert!(message.contains("did you mean kafka.bootstrap?"), "{message}");
    assert!(with_variable("UNDERTONE__NOTHING__LIKE__THIS", "x").is_err());
    assert!(with_variable("UNDERTONE_TEST_SOMETHING", "x").is_ok(), "only the prefix with two underscores is ours");
}

#[test]
fn variable_with_single_underscores_is_refused_with_the_right_name_and_others_are_left_alone() {
    let error = with_variable("UNDERTONE_HTTP_LISTEN", "127.0.0.1:1").unwrap_err().to_string();
    assert!(error.contains("UNDERTONE__HTTP__LISTEN"), "{error}");
    with_variable("UNDERTONE_PORT_8080_TCP", "tcp://10.0.0.1:8080").unwrap();
}

#[test]
fn a_list_is_given_by_variable_as_in_the_file_or_with_commas() {
    for text in [r#"["encode", "emotion"]"#, "encode,emotion", " encode , emotion "] {
        let config = with_variable("UNDERTONE__PROCESSORS__STAGES", text).unwrap();
        assert_eq!(config.processors.stages, ["encode", "emotion"], "{text}");
    }
    with_variable("UNDERTONE__PROCESSORS__STAGES", r#"["encode""#).unwrap_err();
}

#[test]
fn secret_that_looks_like_a_number_still_loads_as_text() {
    for number in ["12345", "0x1F", "1_000", "1e5", "true", "1979-05-27"] {
        let config = with_file(&format!("[telegram.bots.b]\nwebhook_secret = {number}\n"));
        let config = config.unwrap_or_else(|e| panic!("{number}: {e}"));
        assert_eq!(config.telegram.bots["b"].webhook_secret.expose_secret(), number);
        let config = with_variable("UNDERTONE__TELEGRAM__BOTS__B__WEBHOOK_SECRET", number).unwrap();
        assert_eq!(config.telegram.bots["b"].webhook_secret.expose_secret(), number);
    }
}

#[test]
fn secret_comes_from_a_file_without_its_line_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    let path = path.display().to_string();
    let name = "UNDERTONE__TELEGRAM__BOTS__B__WEBHOOK_SECRET_FILE";
    let config = with_variable(name, &path).unwrap();
    assert_eq!(config.telegram.bots["b"].webhook_secret.expose_secret(), "s3cret");
    let both = [(name.to_owned(), path), ("UNDERTONE__TELEGRAM__BOTS__B__WEBHOOK_SECRET".to_owned(), "x".to_owned())];
    assert!(matches!(load(None, both), Err(Error::Conflict { .. })));
    let missing = with_variable(name, "/nowhere/token").unwrap_err().to_string();
    assert!(missing.contains("/nowhere/token"), "{missing}");
}

#[test]
fn no_secret_is_printed_not_even_by_errors() {
    let secret = "hunter2hunter2";
    let name = "UNDERTONE__TELEGRAM__BOTS__B__WEBHOOK_SECRET".to_owned();
    let property = "UNDERTONE__KAFKA__PROPERTIES__SASL_PASSWORD".to_owned();
    let variables = [(name.clone(), secret.to_owned()), (property, secret.to_owned())];
    let printed = masked(&table(None, variables.clone()).unwrap()).to_string();
    assert!(printed.contains("webhook_secret") && printed.contains("sasl.password"), "{printed}");
    assert!(!printed.contains(secret), "{printed}");
    assert!(!format!("{:?}", load(None, variables).unwrap()).contains(secret));
    let broken = [
        with_file(&format!("[telegram.bots.b]\nwebhook_secret = \"{secret}\"\nwebhook_secret = \"{secret}\"\n")),
        with_file(&format!("[telegram.bots.b]\nwebhook_secret = \"{secret}\n")),
        with_file(&format!("[telegram.bots.b]\nwebhook_secret = [\"{secret}\"]\n")),
        with_variable(&name, &format!("{secret} with spaces")),
    ];
    for broken in broken {
        let message = broken.unwrap_err().to_string();
        assert!(!message.contains(secret), "{message}");
    }
}

#[test]
fn client_properties_keep_their_dots() {
    let config = with_file("[kafka.properties]\nsasl.username = \"u\"\n\"sasl.password\" = \"p\"\n").unwrap();
    let names: Vec<&str> = config.kafka.properties.keys().map(String::as_str).collect();
    assert_eq!(names, ["sasl.password", "sasl.username"]);
    let config = with_variable("UNDERTONE__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SASL_SSL").unwrap();
    assert_eq!(config.kafka.properties["security.protocol"].expose_secret(), "SASL_SSL");
}

#[test]
fn values_of_the_wrong_kind_name_the_key_and_what_it_must_be() {
    for (text, wanted) in [
        ("[kafka]\npartitions = \"many\"\n", "kafka.partitions must be a whole number"),
        ("[http]\nallow_remote = 1\n", "http.allow_remote must be true or false"),
        ("[processors]\nstages = [1]\n", "processors.stages must be a list of texts"),
        ("http = 1\n", "http must be a table"),
    ] {
        let message = with_file(text).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
    }
    let message = with_variable("UNDERTONE__KAFKA__PARTITIONS", "many").unwrap_err().to_string();
    assert!(message.contains("kafka.partitions must be a whole number"), "{message}");
    let message = with_file("[history]\nkind = \"cassandra\"\n").unwrap_err().to_string();
    assert!(message.contains("cassandra") && message.contains("sqlite"), "{message}");
}

#[test]
fn listener_that_other_machines_reach_needs_a_word() {
    for (section, key) in [("http", "HTTP"), ("broker", "BROKER")] {
        let listen = (format!("UNDERTONE__{key}__LISTEN"), "0.0.0.0:0".to_owned());
        let message = load(None, [listen.clone()]).unwrap_err().to_string();
        assert!(message.contains(&format!("[{section}] allow_remote = true")), "{message}");
        let allow = (format!("UNDERTONE__{key}__ALLOW_REMOTE"), "true".to_owned());
        load(None, [listen, allow]).unwrap();
    }
}

#[test]
fn embedded_contexts_with_an_outside_kafka_need_a_word() {
    let bootstrap = ("UNDERTONE__KAFKA__BOOTSTRAP".to_owned(), "kafka:9092".to_owned());
    let config = load(None, [bootstrap.clone()]).unwrap();
    assert!(config.check_only_machine().unwrap_err().to_string().contains("only_machine = true"));
    let only = ("UNDERTONE__CONTEXT__ONLY_MACHINE".to_owned(), "true".to_owned());
    load(None, [bootstrap, only]).unwrap().check_only_machine().unwrap();
}

#[test]
fn value_that_its_type_refuses_is_named_by_its_key() {
    for (name, value, expected) in [
        ("HTTP__LISTEN", "localhost:8080", ["http.listen", "127.0.0.1:8080"]),
        ("PROCESSORS__TIER", "slow", ["processors.tier", "`full`"]),
        ("HTTP__CONNECTIONS_MAX", "-1", ["http.connections_max", ""]),
    ] {
        let said = with_variable(&format!("UNDERTONE__{name}"), value).unwrap_err().to_string();
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    }
}

#[test]
fn names_of_hosts_and_origins_are_lists_that_are_checked() {
    let hosts = with_variable("UNDERTONE__HTTP__HOSTS_ALLOWED", "undertone.example.org, undertone").unwrap();
    assert_eq!(hosts.http.hosts_allowed, ["undertone.example.org", "undertone"]);
    for (name, value) in [
        ("HTTP__HOSTS_ALLOWED", "https://undertone.example.org"),
        ("HTTP__HOSTS_ALLOWED", "undertone:443"),
        ("INGEST__ORIGINS_ALLOWED", "app.example.org"),
        ("INGEST__ORIGINS_ALLOWED", "https://app.example.org/"),
    ] {
        let refused = with_variable(&format!("UNDERTONE__{name}"), value);
        assert!(matches!(refused, Err(Error::Conflict { .. })), "{value}");
    }
}

#[test]
fn stages_and_levels_that_would_stop_the_start_are_refused_before_it() {
    for (name, value, expected) in [
        ("PROCESSORS__STAGES", "emotoin", "there is no stage `emotoin`"),
        ("PROCESSORS__STAGES", "emotion,encode", "in order"),
        ("LOG__LEVEL", "bogus", "[log] level = \"bogus\""),
    ] {
        let said = with_variable(&format!("UNDERTONE__{name}"), value).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn bot_without_a_secret_is_named_with_both_ways_to_give_it() {
    let said = with_file("[telegram.bots.helper]\n").unwrap_err().to_string();
    assert!(said.contains("[telegram.bots.helper]") && said.contains("webhook_secret_file"), "{said}");
}

#[test]
fn password_of_the_cql_server_comes_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("scylla");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let text = format!(
        "[history]\nkind = \"scylla\"\nretention_days = 365\n[scylla]\nnodes = \"10.0.0.1:9042, 10.0.0.2:9042\"\n\
         user = \"undertone\"\npassword_file = \"{}\"\n",
        secret.display()
    );
    let settings = with_file(&text).unwrap().scylla.settings();
    assert_eq!(settings.login, Some(("undertone".to_owned(), "s3cret".to_owned())));
    assert_eq!(settings.nodes, ["10.0.0.1:9042", "10.0.0.2:9042"]);
    assert!(!format!("{settings:?}").contains("s3cret"));
    let missing = text.replace("scylla\"\n", "missing\"\n").replace("kind = \"missing\"", "kind = \"scylla\"");
    let message = with_file(&missing).unwrap_err().to_string();
    assert!(message.contains("password_file"), "{message}");
}

#[test]
fn what_a_cql_server_could_not_do_is_refused_before_it_is_asked() {
    let scylla = "[history]\nkind = \"scylla\"\n[scylla]\n";
    for (text, word) in [
        (format!("{scylla}keyspace = \"a; DROP\"\n"), "keyspace"),
        (format!("{scylla}nodes = \"host\"\n"), "host:port"),
        (format!("{scylla}replication = \"three\"\n"), "replication_factor"),
        (format!("{scylla}user = \"undertone\"\n"), "password"),
        (format!("{scylla}requests_max = 0\n"), "requests_max"),
        ("[history]\nkind = \"scylla\"\nretention_days = 99999\n".to_owned(), "7300"),
        ("[history]\nretention_days = 30\n".to_owned(), "a file keeps turns for ever"),
    ] {
        let message = with_file(&text).unwrap_err().to_string();
        assert!(message.contains(word), "{text}: {message}");
    }
    with_file("[scylla]\nkeyspace = \"Not Used\"\n").unwrap();
}

#[test]
fn keys_are_for_a_log_that_is_not_ours() {
    let message = with_file("[privacy]\ncrypto_shred = true\n").unwrap_err().to_string();
    assert!(message.contains("takes the words out itself") && message.contains("[kafka] bootstrap"), "{message}");
    let outside = "[privacy]\ncrypto_shred = true\n[kafka]\nbootstrap = \"kafka:9092\"\n";
    let config = with_file(outside).unwrap();
    assert!(config.privacy.crypto_shred && config.keys_path().ends_with("keys.sqlite"));
}

#[test]
fn password_of_redis_comes_from_a_file_and_what_cannot_reach_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("redis");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let text = format!(
        "[context]\ncache = \"redis\"\n[redis]\nkind = \"sentinel\"\nmaster = \"mine\"\nnodes = \"a:1, b:2\"\n\
         password_file = \"{}\"\n",
        secret.display()
    );
    let settings = with_file(&text).unwrap().redis.settings();
    assert_eq!(settings.password.as_deref(), Some("s3cret"));
    assert_eq!(settings.nodes, ["a:1", "b:2"]);
    assert!(!format!("{settings:?}").contains("s3cret"));
    for (from, to, word) in [
        ("master = \"mine\"", "master = \"\"", "master"),
        ("a:1, b:2", "a", "host:port"),
        ("a:1, b:2", "", "host:port"),
        ("password_file", "prefix = \"{a}\"\npassword_file", "braces"),
        ("password_file", "call_ms_max = 0\npassword_file", "call_ms_max"),
        ("password_file", "user = \"u\"\n#", "password"),
    ] {
        let message = with_file(&text.replace(from, to)).unwrap_err().to_string();
        assert!(message.contains(word), "{to}: {message}");
    }
}
