//! Values as Avro bodies: serde along a plan that is made of the schema once.
//!
//! Promises: the bytes that apache-avro writes for the same value and schema (a test compares them), in a fraction of the
//! time: fields come in the schema's order, so that nothing is looked up. A value that does not fit is an error that
//! names the field. Leaves out: what no committed schema has, such as maps, enums and unions of more than null and one
//! other; a schema with them has no plan, and a test makes one of each.

use std::collections::HashMap;
use std::fmt::Display;

use apache_avro::Schema;
use serde::Serialize;
use serde::ser::{Error, Impossible, SerializeSeq, SerializeStruct, Serializer};

/// How values of a schema are written.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Array(Box<Plan>),
    /// Null or another.
    Optional(Box<Plan>),
    /// The fields, in order.
    Record(Vec<(String, Plan)>),
}

/// Why a value could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unfit(String);

impl Error for Unfit {
    fn custom<T: Display>(message: T) -> Unfit {
        Unfit(message.to_string())
    }
}

impl Plan {
    /// The plan of a schema, if it has one.
    pub(super) fn of(schema: &Schema) -> Option<Plan> {
        fn plan(schema: &Schema, known: &mut HashMap<String, Plan>) -> Option<Plan> {
            Some(match schema {
                Schema::Boolean => Plan::Boolean,
                Schema::Int => Plan::Int,
                Schema::Long | Schema::TimestampMillis => Plan::Long,
                Schema::Float => Plan::Float,
                Schema::Double => Plan::Double,
                Schema::Bytes => Plan::Bytes,
                Schema::String => Plan::String,
                Schema::Array(array) => Plan::Array(Box::new(plan(&array.items, known)?)),
                Schema::Union(union) => match union.variants() {
                    [Schema::Null, other] => Plan::Optional(Box::new(plan(other, known)?)),
                    _ => return None,
                },
                Schema::Record(record) => {
                    let fields = record.fields.iter();
                    let fields = fields.map(|field| Some((field.name.clone(), plan(&field.schema, known)?)));
                    let record_plan = Plan::Record(fields.collect::<Option<_>>()?);
                    known.insert(record.name.to_string(), record_plan.clone());
                    record_plan
                }
                Schema::Ref { name } => known.get(&name.to_string())?.clone(),
                _ => return None,
            })
        }
        plan(schema, &mut HashMap::new())
    }

    /// Appends a value to `out`.
    pub(super) fn write<T: Serialize + ?Sized>(&self, value: &T, out: &mut Vec<u8>) -> Result<(), Unfit> {
        value.serialize(Writer { plan: self, out })
    }
}

/// A number as Avro has it: zigzag, seven bits a byte, the lowest first.
fn long(value: i64, out: &mut Vec<u8>) {
    let mut rest = (value << 1 ^ value >> 63) as u64;
    while rest > 0x7F {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Writes one value.
struct Writer<'a> {
    plan: &'a Plan,
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// What is inside null or another, where a value is there.
    fn present(self) -> Writer<'a> {
        let Plan::Optional(other) = self.plan else { return self };
        long(1, self.out);
        Writer { plan: other, out: self.out }
    }

    fn unfit<T>(&self, value: &str) -> Result<T, Unfit> {
        Err(Unfit(format!("{value} does not fit {:.40}", format!("{:?}", self.plan))))
    }
}

/// What is written as a number or in place.
macro_rules! plain {
    ($($name:ident, $type:ty, $plan:ident, |$value:ident, $out:ident| $write:expr;)*) => { $(
        fn $name(self, $value: $type) -> Result<(), Unfit> {
            let writer = self.present();
            match writer.plan {
                Plan::$plan => {
                    let $out = writer.out;
                    $write;
                    Ok(())
                }
                _ => writer.unfit(stringify!($type)),
            }
        }
    )* };
}

/// What no schema has.
macro_rules! absent {
    ($($name:ident($($type:ty),*) -> $result:ty;)*) => { $(
        fn $name(self, $(_: $type),*) -> Result<$result, Unfit> {
            self.unfit(stringify!($name))
        }
    )* };
}

type Never = Impossible<(), Unfit>;

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Unfit;
    type SerializeSeq = Items<'a>;
    type SerializeStruct = Fields<'a>;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStructVariant = Never;

    plain! {
        serialize_bool, bool, Boolean, |value, out| out.push(u8::from(value));
        serialize_i32, i32, Int, |value, out| long(i64::from(value), out);
        serialize_i64, i64, Long, |value, out| long(value, out);
        serialize_f32, f32, Float, |value, out| out.extend_from_slice(&value.to_le_bytes());
        serialize_f64, f64, Double, |value, out| out.extend_from_slice(&value.to_le_bytes());
        serialize_str, &str, String, |value, out| {
            long(value.len() as i64, out);
            out.extend_from_slice(value.as_bytes());
        };
        serialize_bytes, &[u8], Bytes, |value, out| {
            long(value.len() as i64, out);
            out.extend_from_slice(value);
        };
    }

    absent! {
        serialize_i8(i8) -> ();
        serialize_i16(i16) -> ();
        serialize_u8(u8) -> ();
        serialize_u16(u16) -> ();
        serialize_u32(u32) -> ();
        serialize_u64(u64) -> ();
        serialize_char(char) -> ();
        serialize_unit() -> ();
        serialize_unit_struct(&'static str) -> ();
        serialize_unit_variant(&'static str, u32, &'static str) -> ();
        serialize_tuple(usize) -> Never;
        serialize_tuple_struct(&'static str, usize) -> Never;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Never;
        serialize_map(Option<usize>) -> Never;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Never;
    }

    fn serialize_none(self) -> Result<(), Unfit> {
        match self.plan {
            Plan::Optional(_) => {
                long(0, self.out);
                Ok(())
            }
            _ => self.unfit("nothing"),
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unfit> {
        value.serialize(self.present())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Unfit> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Unfit> {
        self.unfit("serialize_newtype_variant")
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Items<'a>, Unfit> {
        let writer = self.present();
        match (writer.plan, length) {
            (Plan::Array(item), Some(length)) => {
                // One block, and the empty one that ends an array.
                if length > 0 {
                    long(length as i64, writer.out);
                }
                Ok(Items { item, out: writer.out, missing: length })
            }
            _ => writer.unfit("a sequence"),
        }
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Fields<'a>, Unfit> {
        let writer = self.present();
        match writer.plan {
            Plan::Record(fields) => Ok(Fields { fields: fields.iter(), out: writer.out }),
            _ => writer.unfit(name),
        }
    }

    fn is_human_readable(&self) -> bool {
        true
    }
}

/// Writes the items of an array.
struct Items<'a> {
    item: &'a Plan,
    out: &'a mut Vec<u8>,
    missing: usize,
}

impl SerializeSeq for Items<'_> {
    type Ok = ();
    type Error = Unfit;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unfit> {
        self.missing = self.missing.checked_sub(1).ok_or_else(|| Unfit("more items than were announced".to_owned()))?;
        self.item.write(value, self.out)
    }

    fn end(self) -> Result<(), Unfit> {
        if self.missing > 0 {
            return Err(Unfit(format!("{} items fewer than were announced", self.missing)));
        }
        long(0, self.out);
        Ok(())
    }
}

/// Writes the fields of a record.
struct Fields<'a> {
    fields: std::slice::Iter<'a, (String, Plan)>,
    out: &'a mut Vec<u8>,
}

impl SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = Unfit;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Unfit> {
        match self.fields.next() {
            Some((name, plan)) if name == key => {
                plan.write(value, self.out).map_err(|Unfit(problem)| Unfit(format!("{key}: {problem}")))
            }
            Some((name, _)) => Err(Unfit(format!("field {key} where the schema has {name}"))),
            None => Err(Unfit(format!("field {key} is not in the schema"))),
        }
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), Unfit> {
        Err(Unfit(format!("field {key} may not be left out")))
    }

    fn end(mut self) -> Result<(), Unfit> {
        self.fields.next().map_or(Ok(()), |(name, _)| Err(Unfit(format!("field {name} is missing"))))
    }
}

#[cfg(test)]
mod tests {
    use apache_avro::writer::datum::GenericDatumWriter;

    use super::*;
    use crate::codec::parsed;
    use crate::registry::latest;
    use crate::slice::{
        CoherenceSlice, DialogueSlice, EmotionSlice, EncodeSlice, MemorySlice, PersonalitySlice, Shade, Space,
        SynesthesiaSlice,
    };
    use crate::{Embedding, Payload, Reject, Turn};

    fn check<T: Payload>(value: &T) {
        let schema = parsed(latest(T::KIND).text).unwrap();
        let reference = GenericDatumWriter::builder(schema).human_readable(true).build().unwrap();
        let mut ours = Vec::new();
        Plan::of(schema).expect("every committed schema has a plan").write(value, &mut ours).unwrap();
        assert_eq!(ours, reference.write_ser_to_vec(value).unwrap());
    }

    #[test]
    fn bytes_are_those_of_the_reference() {
        let full: Turn = serde_json::from_str(include_str!("../../avro/examples/turn.json")).unwrap();
        check(&full);
        check(&Turn::message("websocket", "room", "ann", "1", "", i64::MIN));
        for at in [0, -1, 63, 64, -64, -65, 1 << 40, i64::MAX] {
            let text = "é".repeat(at.unsigned_abs().min(200) as usize);
            check(&Turn { position: Some(at), ..Turn::message("telegram", &text, "", &text, &text, at) });
        }
        let mut without = full.clone();
        without.emotion = without.emotion.map(|emotion| crate::Emotion { mood: None, labels: Vec::new(), ..emotion });
        check(&without);
        check(&Turn { emotion: None, sender: None, ..full });
        let reject: Reject = serde_json::from_str(include_str!("../../avro/examples/reject.json")).unwrap();
        check(&reject);
        check(&Reject { key: None, offset: None, raw: vec![0; 1000], headers: Vec::new(), ..reject });
        check(&EmotionSlice::default());
        check(&DialogueSlice::default());
        check(&PersonalitySlice::default());
        check(&CoherenceSlice::default());
        check(&MemorySlice::default());
        let palette = vec![Shade { lightness: 0.5, a: -0.25, b: 0.125 }; 5];
        check(&SynesthesiaSlice { turns: 2, palette, ..SynesthesiaSlice::default() });
        check(&EmotionSlice { ekman: vec![0.5; 7], valence: f64::NAN, ..EmotionSlice::default() });
        let recent = vec![Embedding::quantise(&[0.5; 256]), Embedding::quantise(&[0.0; 4])];
        check(&EncodeSlice { spaces: vec![Space { model: "m@1".to_owned(), recent }], flagged: 3 });
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_field_is_named() {
        #[derive(serde::Serialize)]
        struct Stamp {
            partition: i32,
            offset: &'static str,
        }
        #[derive(serde::Serialize)]
        struct Swapped {
            offset: i64,
            partition: i32,
        }
        #[derive(serde::Serialize)]
        struct Half {
            partition: i32,
        }
        let plan = Plan::Record(vec![("partition".to_owned(), Plan::Int), ("offset".to_owned(), Plan::Long)]);
        let problem = |result: Result<(), Unfit>| result.unwrap_err().to_string();
        let mut out = Vec::new();
        assert_eq!(
            problem(plan.write(&Stamp { partition: 1, offset: "2" }, &mut out)),
            "offset: &str does not fit Long"
        );
        let swapped = problem(plan.write(&Swapped { offset: 2, partition: 1 }, &mut out));
        assert_eq!(swapped, "field offset where the schema has partition");
        assert_eq!(problem(plan.write(&Half { partition: 1 }, &mut out)), "field offset is missing");
        assert_eq!(problem(Plan::Int.write(&None::<i32>, &mut out)), "nothing does not fit Int");
    }
}
