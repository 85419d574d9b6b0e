//! Mail over SMTP, to a server of the test's own that speaks just enough of it: what was handed over arrives, once, and an address that
//! would write headers of its own does not.

use bitnet_platform::identity::mail::{Mail, MailRoute, mailer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Takes one mail; returns what the client said.
pub(crate) async fn take(stream: TcpStream) -> Vec<String> {
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::new(reading).lines();
    let mut said = Vec::new();
    writing.write_all(b"220 test ESMTP\r\n").await.expect("it listens");
    let mut is_data = false;
    while let Some(line) = lines.next_line().await.expect("lines") {
        let answer: &[u8] = match (is_data, line.as_str()) {
            (true, ".") => {
                is_data = false;
                b"250 taken\r\n"
            }
            (true, _) => b"",
            (false, "DATA") => {
                is_data = true;
                b"354 go on\r\n"
            }
            (false, "QUIT") => break,
            (false, _) => b"250 fine\r\n",
        };
        said.push(line);
        writing.write_all(answer).await.expect("it listens");
        if answer.starts_with(b"250 taken") {
            break;
        }
    }
    said
}

#[tokio::test]
async fn mail_arrives_at_the_server_that_is_configured() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("smtp://{}", listener.local_addr().expect("an address"));
    let (mailer, sender) =
        mailer(&MailRoute::Smtp { url, from: "bitnet <no-reply@example.com>".into() }, |_| unreachable!("there is a server"))
            .expect("a mailer");
    let sending = tokio::spawn(sender.run());
    let evil = Mail { to: "a@example.com\r\nBcc: x@example.com".into(), subject: "s".into(), text: "t".into() };
    mailer.send(evil).expect("handed over, and left out");
    let text = "Hello,\n\nhttp://127.0.0.1:8080/confirm/0\n".to_string();
    mailer.send(Mail { to: "ann@example.com".into(), subject: "bitnet: Confirm\r\nBcc: x@example.com".into(), text }).expect("handed over");
    let said = take(listener.accept().await.expect("a client").0).await;
    sending.abort();
    assert!(said.iter().any(|line| line.starts_with("MAIL FROM:<no-reply@example.com>")), "{said:?}");
    let recipients: Vec<&String> = said.iter().filter(|line| line.starts_with("RCPT TO:")).collect();
    assert_eq!(recipients, ["RCPT TO:<ann@example.com>"]);
    assert!(said.iter().any(|line| line == "http://127.0.0.1:8080/confirm/0"), "{said:?}");
    assert!(!said.iter().any(|line| line.starts_with("Bcc")), "no header of the subject's: {said:?}");
}

/// Answers one client: greets, says `451` to an address that is slow, and takes everything else; returns to whom it took mail.
pub(crate) async fn answer(stream: TcpStream) -> Vec<String> {
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::new(reading).lines();
    let (mut taken, mut is_data) = (Vec::new(), false);
    writing.write_all(b"220 test ESMTP\r\n").await.expect("it listens");
    while let Ok(Some(line)) = lines.next_line().await {
        let said: &[u8] = match (is_data, line.as_str()) {
            (true, ".") => b"250 taken\r\n",
            (true, _) => continue,
            (false, "DATA") => b"354 go on\r\n",
            (false, line) if line.starts_with("RCPT TO:<slow") => b"451 later\r\n",
            (false, _) => b"250 fine\r\n",
        };
        is_data = said.starts_with(b"354");
        if line.starts_with("RCPT TO:") && said.starts_with(b"250") {
            taken.push(line);
        }
        if writing.write_all(said).await.is_err() || said == b"250 taken\r\n" {
            break;
        }
    }
    taken
}

#[tokio::test]
async fn mail_that_cannot_be_sent_now_keeps_no_other_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("smtp://{}", listener.local_addr().expect("an address"));
    let (mailer, sender) =
        mailer(&MailRoute::Smtp { url, from: "a@example.com".into() }, |_| unreachable!("there is a server")).expect("a mailer");
    let sending = tokio::spawn(sender.run());
    for to in ["slow-1@example.com", "slow-2@example.com", "ann@example.com"] {
        mailer.send(Mail { to: to.into(), subject: "s".into(), text: "t".into() }).expect("handed over");
    }
    let arrived = async {
        loop {
            let taken = answer(listener.accept().await.expect("a client").0).await;
            if !taken.is_empty() {
                return taken;
            }
        }
    };
    // One mail that is tried five times takes more than five minutes.
    let taken = tokio::time::timeout(std::time::Duration::from_secs(60), arrived).await.expect("it overtakes");
    sending.abort();
    assert_eq!(taken, ["RCPT TO:<ann@example.com>"]);
}

#[test]
fn mail_server_that_is_none_is_refused() {
    for (url, from) in [("http://mail.example.com", "a@b.c"), ("", "a@b.c"), ("smtp://localhost", "nobody at all")] {
        assert!(mailer(&MailRoute::Smtp { url: url.into(), from: from.into() }, |_| {}).is_err(), "{url:?} {from:?}");
    }
}
