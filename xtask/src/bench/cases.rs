//! The named cases.
//!
//! A: layers. B: attention cores. C: decoding, one query over a long cache. D: products. E: training steps. F: dropout.

use crate::spec::{CoreSizes, LayerSizes, Pass, ProductSizes, Spec, Work, short_name};
use anyhow::{Result, bail};
use attn_core::DType;

/// Layers: name, batch, length, features, heads.
const LAYERS: [(&str, [usize; 4]); 5] = [
    ("A1", [1, 512, 768, 12]),
    ("A2", [8, 128, 384, 12]),
    ("A3", [1, 16, 64, 4]),
    ("A4", [1, 2048, 512, 8]),
    ("A5", [32, 32, 256, 8]),
];

/// Products: name, rows, columns, inner.
const PRODUCTS: [(&str, [usize; 3]); 3] = [
    ("D1", [512, 768, 768]),
    ("D2", [2048, 2048, 2048]),
    ("D3", [128, 384, 384]),
];

/// Keys of B5 from here on are padding: about half of them, and no whole number of blocks.
const PADDED_FROM: usize = 2071;

/// Every case in order.
pub(crate) fn all() -> Vec<Spec> {
    let mut cases = Vec::new();
    cases.extend(LAYERS.map(|(name, sizes)| case(name, name, layer(sizes, Pass::Forward))));
    cases.extend(cores());
    cases.extend(decoding());
    cases.extend(PRODUCTS.map(|(name, sizes)| case(name, name, product(sizes))));
    for (name, data) in [("E1", "A1"), ("E4", "A4")] {
        cases.push(case(name, data, layer(sizes_of(data), Pass::Train)));
    }
    let dropout = Pass::Dropout { rate: 0.1 };
    cases.push(case("F1", "A1", layer(sizes_of("A1"), dropout)));
    cases
}

/// The cases that `names` ask for: whole names, or what the names of a group begin with.
pub(crate) fn named(names: &[String]) -> Result<Vec<Spec>> {
    let all = all();
    let asks = |name: &str, case: &Spec| case.name.starts_with(name);
    if let Some(unknown) = names
        .iter()
        .find(|name| !all.iter().any(|case| asks(name, case)))
    {
        let known: Vec<_> = all.iter().map(|case| case.name.as_str()).collect();
        bail!(
            "there is no case `{unknown}`; there are {}",
            known.join(", ")
        );
    }
    Ok(all
        .into_iter()
        .filter(|case| names.iter().any(|name| asks(name, case)))
        .collect())
}

/// Causal cores of growing length, for the plots of time and memory against length.
pub(crate) fn lengths() -> Vec<Spec> {
    [256, 512, 1024, 2048, 4096, 8192]
        .map(|length| {
            let name = format!("L{length}");
            case(&name, &name, core([8, length, 64], true, None))
        })
        .to_vec()
}

fn cores() -> Vec<Spec> {
    let long = |causal, valid| core([8, 4096, 64], causal, valid);
    let mut cases = vec![
        case("B1", "B1", long(false, None)),
        case("B2", "B1", long(true, None)),
        case("B3", "B3", core([16, 1024, 128], false, None)),
        case("B4", "B4", core([8, 8192, 64], true, None)),
        case("B5", "B1", long(false, Some(PADDED_FROM))),
    ];
    for dtype in [DType::F16, DType::BF16] {
        let name = format!("B6{}", short_name(dtype));
        cases.push(Spec {
            dtype,
            ..case(&name, "B1", long(false, None))
        });
    }
    cases
}

fn decoding() -> Vec<Spec> {
    let mut cases = Vec::new();
    for (group, heads, kv_heads, key_length, depth) in
        [("C1", 32, 8, 4096, 128), ("C2", 8, 8, 1024, 64)]
    {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let sizes = CoreSizes {
                batch: 1,
                heads,
                kv_heads,
                query_length: 1,
                key_length,
                depth,
                causal: false,
                valid: None,
            };
            let name = format!("{group}{}", short_name(dtype));
            cases.push(Spec {
                dtype,
                ..case(&name, group, Work::Core(sizes))
            });
        }
    }
    cases
}

fn case(name: &str, data: &str, work: Work) -> Spec {
    Spec {
        name: name.to_owned(),
        data: data.to_owned(),
        dtype: DType::F32,
        work,
    }
}

const fn layer([batch, length, features, heads]: [usize; 4], pass: Pass) -> Work {
    let sizes = LayerSizes {
        batch,
        length,
        features,
        heads,
    };
    Work::Layer(sizes, pass)
}

const fn core([heads, length, depth]: [usize; 3], causal: bool, valid: Option<usize>) -> Work {
    Work::Core(CoreSizes {
        batch: 1,
        heads,
        kv_heads: heads,
        query_length: length,
        key_length: length,
        depth,
        causal,
        valid,
    })
}

const fn product([rows, columns, inner]: [usize; 3]) -> Work {
    Work::Product(ProductSizes {
        rows,
        inner,
        columns,
    })
}

fn sizes_of(layer: &str) -> [usize; 4] {
    let found = LAYERS.iter().find(|(name, _)| *name == layer);
    found.map(|&(_, sizes)| sizes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_a_beginning_is_a_group() {
        let all = all();
        for (index, case) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| other.name != case.name));
        }
        let some = named(&["D".to_owned(), "A3".to_owned(), "C2".to_owned()]).unwrap();
        let names: Vec<_> = some.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["A3", "C2f32", "C2f16", "C2bf16", "D1", "D2", "D3"]);
        assert!(named(&["Z9".to_owned()]).is_err());
    }
}
