//! One query: the truth, and what plain arithmetic gives.

use super::super::case::Case;
use super::super::oracle::{self, Pair};
use super::super::rows::Line;
use super::super::{Maths, plain};
use crate::dtype::Element;
use crate::scores::Stage;
use alloc::vec::Vec;

/// One query and what it meets.
pub(super) struct Row<'a> {
    case: &'a Case,
    maths: &'a Maths,
    query: Vec<f64>,
    keys: &'a [Vec<f64>],
    pub(super) line: &'a Line,
}

/// What is true of it. Scores are there only if they are asked for.
pub(super) struct Truth {
    pub(super) scaled: Vec<f64>,
    pub(super) capped: Vec<f64>,
    /// All scores, those of hidden keys too.
    pub(super) scores: Vec<f64>,
    pub(super) softmax: oracle::Softmax,
}

/// What plain arithmetic gives.
pub(super) struct Plainly {
    pub(super) products: Vec<f64>,
    pub(super) scores: plain::Scores,
    pub(super) softmax: plain::Softmax,
    /// The weights after dropout.
    dropped: Vec<f64>,
}

impl<'a> Row<'a> {
    pub(super) fn new(
        case: &'a Case,
        maths: &'a Maths,
        query: Vec<f64>,
        keys: &'a [Vec<f64>],
        line: &'a Line,
    ) -> Self {
        Self {
            case,
            maths,
            query,
            keys,
            line,
        }
    }

    pub(super) fn truth(&self) -> Truth {
        let product = |key: &Vec<f64>| oracle::dot(self.query.iter().copied(), key.iter().copied());
        let row = oracle::Row {
            products: self.keys.iter().map(product).collect(),
            scale: self.case.scale.factor(self.case.depth, self.maths.sqrt),
            line: self.line,
            maths: self.maths,
        };
        let at = |stage: Stage, score: &dyn Fn(usize) -> Pair| -> Vec<f64> {
            match self.case.stage == stage {
                true => (0..self.keys.len()).map(|key| score(key).value()).collect(),
                false => Vec::new(),
            }
        };
        Truth {
            scaled: at(Stage::Scaled, &|key| row.scaled(key)),
            capped: at(Stage::Capped, &|key| row.capped(key)),
            scores: at(Stage::Masked, &|key| row.score(key)),
            softmax: row.softmax(),
        }
    }

    pub(super) fn plainly<T: Element>(&self) -> Plainly {
        let scaled = plain::scaled::<T>(&self.query, self.case.scale, self.maths);
        let products = plain::products::<T>(&scaled, self.keys);
        let scores = plain::scores::<T>(&products, self.line);
        let softmax = plain::softmax::<T>(&scores, self.line, self.maths);
        Plainly {
            dropped: plain::dropped::<T>(&softmax.weights, &self.line.factors),
            products,
            scores,
            softmax,
        }
    }
}

impl Plainly {
    /// A column of the output.
    pub(super) fn out<T: Element>(&self, values: &[f64]) -> f64 {
        plain::dot::<T>(&self.dropped, values)
    }
}
