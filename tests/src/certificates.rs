//! Certificates for servers under test, and for their clients: an authority of the test's own issues them, valid from
//! yesterday and for two days, as files of PEM in the test's folder.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, KeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

const DAY_S: i64 = 24 * 60 * 60;

/// An authority that signs certificates.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
    folder: PathBuf,
    /// Its own certificate, which clients and servers trust.
    pub file: PathBuf,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, as PKCS #8.
    pub key: PathBuf,
    /// Key and certificate in one file, as Java's servers read them.
    pub both: PathBuf,
}

impl Authority {
    /// One that nobody knows yet, with its files in this folder.
    pub fn new(folder: &Path, name: &str) -> Authority {
        let key = key().expect("make a key");
        let certificate = certificate(name, &key, None, &[]).expect("make a certificate");
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, certificate.to_pem().expect("PEM")).expect("write the authority's certificate");
        Authority { certificate, key, folder: folder.to_owned(), file }
    }

    /// A certificate for these hosts: names, or addresses of IP.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Issued {
        let key = key().expect("make a key");
        let certificate = certificate(name, &key, Some(self), hosts).expect("make a certificate");
        let (certificate, key) = (certificate.to_pem().expect("PEM"), key.private_key_to_pem_pkcs8().expect("PEM"));
        let write = |part: &str, bytes: &[u8]| {
            let path = self.folder.join(format!("{name}{part}.pem"));
            std::fs::write(&path, bytes).expect("write a file of PEM");
            path
        };
        Issued {
            both: write("", &[key.as_slice(), &certificate].concat()),
            certificate: write(".certificate", &certificate),
            key: write(".key", &key),
        }
    }
}

fn key() -> Result<PKey<Private>, ErrorStack> {
    let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    PKey::from_ec_key(EcKey::generate(&curve)?)
}

/// Signed by an authority; without one by itself, as the certificate of an authority.
fn certificate(name: &str, key: &PKey<Private>, by: Option<&Authority>, hosts: &[&str]) -> Result<X509, ErrorStack> {
    let mut subject = X509NameBuilder::new()?;
    subject.append_entry_by_nid(Nid::COMMONNAME, name)?;
    let subject = subject.build();
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970");
    let now = i64::try_from(since.as_secs()).expect("the clock is before the year 292 billion");

    let mut builder = X509Builder::new()?;
    builder.set_version(2)?;
    builder.set_serial_number(&*serial.to_asn1_integer()?)?;
    builder.set_subject_name(&subject)?;
    builder.set_issuer_name(by.map_or(&subject, |by| by.certificate.subject_name()))?;
    builder.set_pubkey(key)?;
    builder.set_not_before(&*Asn1Time::from_unix(now - DAY_S)?)?;
    builder.set_not_after(&*Asn1Time::from_unix(now + 2 * DAY_S)?)?;
    if by.is_none() {
        builder.append_extension(BasicConstraints::new().critical().ca().build()?)?;
        builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
    }
    if !hosts.is_empty() {
        let mut names = SubjectAlternativeName::new();
        for host in hosts {
            if host.parse::<IpAddr>().is_ok() {
                names.ip(host)
            } else {
                names.dns(host)
            };
        }
        builder.append_extension(names.build(&builder.x509v3_context(None, None))?)?;
    }
    builder.sign(by.map_or(key, |by| &by.key), MessageDigest::sha256())?;
    Ok(builder.build())
}
