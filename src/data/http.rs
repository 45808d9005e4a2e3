//! Downloads that go on where they stopped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use ureq::Agent;

/// Long enough for a slow link, short enough to go on to the next source without asking for patience.
const CONNECT: Duration = Duration::from_secs(4);
const FIRST_BYTE: Duration = Duration::from_secs(15);
const BETWEEN_READS: Duration = Duration::from_secs(30);

/// A client with the time limits above; proxies are those of the environment.
pub fn agent() -> Agent {
    Agent::config_builder()
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(FIRST_BYTE))
        .timeout_per_read(Some(BETWEEN_READS))
        .http_status_as_error(false)
        .build()
        .into()
}

/// Downloads `address` to `partial`, going on at its end when it exists already.
///
/// The file keeps what arrived when the connection breaks, so calling again goes on from there.
pub fn download(agent: &Agent, address: &str, partial: &Path) -> Result<()> {
    let have = fs::metadata(partial).map_or(0, |metadata| metadata.len());
    let mut request = agent.get(address);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let mut response = request.call().with_context(|| address.to_owned())?;
    let goes_on = match response.status().as_u16() {
        200 => false,
        206 => true,
        // Asked for what lies behind the end: the file is already whole, or another one; its hash will tell.
        416 if have > 0 => return Ok(()),
        status => anyhow::bail!("{address} answered with status {status}"),
    };
    let start = if goes_on { have } else { 0 };
    let expected = response.body().content_length();
    let bar = progress(address, start, expected.map(|length| start + length));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(goes_on)
        .truncate(!goes_on)
        .open(partial)
        .with_context(|| format!("opening {}", partial.display()))?;
    let copied = copy(&mut bar.wrap_read(response.body_mut().as_reader()), &mut file);
    bar.finish_and_clear();
    let received =
        copied.with_context(|| format!("{address} broke off; calling again goes on from there"))?;
    if let Some(expected) = expected {
        ensure!(received == expected, "{address} broke off after {received} of {expected} bytes");
    }
    Ok(())
}

/// `io::copy` that keeps what arrived before an error.
fn copy(from: &mut dyn Read, to: &mut File) -> io::Result<u64> {
    let copied = io::copy(from, to);
    to.flush()?;
    copied
}

fn progress(address: &str, start: u64, total: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let name = address.rsplit('/').next().unwrap_or(address).to_owned();
    let style = ProgressStyle::with_template("{msg:32} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    total
        .map_or_else(ProgressBar::new_spinner, ProgressBar::new)
        .with_style(style)
        .with_message(name)
        .with_position(start)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    /// Answers one request an element: with so many bytes of `content` from where the request asks, while the
    /// length in the header is that of all the rest. Returns the address and the `Range` headers seen.
    fn server(content: &'static [u8], sends: Vec<usize>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/file.gz", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let mut ranges = Vec::new();
            for send in sends {
                let (mut stream, _) = listener.accept().unwrap();
                let mut range = String::new();
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap();
                    if let Some(value) = line.to_lowercase().strip_prefix("range: ") {
                        range = value.to_owned();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let from = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse().ok());
                let rest = &content[from.unwrap_or(0)..];
                let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    rest.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(&rest[..send.min(rest.len())]).unwrap();
                ranges.push(range);
            }
            ranges
        });
        (address, served)
    }

    /// A client that goes straight to the local server whatever proxies the environment names.
    fn direct() -> Agent {
        Agent::config_builder().proxy(None).http_status_as_error(false).build().into()
    }

    #[test]
    fn broken_download_goes_on_where_it_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("file.gz.partial");
        let (address, served) = server(b"0123456789", vec![4, 10]);
        let error = download(&direct(), &address, &partial).unwrap_err();
        assert!(format!("{error:#}").contains("broke off"), "{error:#}");
        assert_eq!(fs::read(&partial).unwrap(), b"0123");
        download(&direct(), &address, &partial).unwrap();
        assert_eq!(fs::read(&partial).unwrap(), b"0123456789");
        assert_eq!(served.join().unwrap(), ["", "bytes=4-"]);
    }

    /// A closed port of the local machine refuses at once, so no time limit is waited for.
    #[test]
    fn refused_connection_is_an_error_that_names_the_address() {
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}/file.gz", listener.local_addr().unwrap())
        };
        let directory = tempfile::tempdir().unwrap();
        let error = download(&direct(), &address, &directory.path().join("x")).unwrap_err();
        assert!(format!("{error:#}").contains(&address), "{error:#}");
    }
}
