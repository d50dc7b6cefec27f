//! Several samples in one request, along the first dimension: enrolment has to see how a server's answers vary with the batch they came in.

use steadfast_golden_sets::{GoldenSet, Sample, Tensor, Values};

/// Samples of one request.
pub(super) const BATCH_MAX: usize = 8;

/// Whether the set's model takes a first dimension of any size, for every input and output.
pub(super) fn is_possible(set: &GoldenSet) -> bool {
    let manifest = set.manifest();
    let free = |shape: &[i64]| shape.first() == Some(&-1);
    !manifest.inputs.is_empty()
        && manifest.inputs.iter().all(|spec| free(&spec.shape))
        && manifest.outputs.iter().all(|spec| free(&spec.shape))
        // A lone free dimension is more likely a length than a batch.
        && manifest.inputs.iter().any(|spec| spec.shape.len() > 1)
}

/// The samples' inputs in one; `None` where they do not fit together.
pub(super) fn join(samples: &[&Sample]) -> Option<Vec<Tensor>> {
    let (first, others) = samples.split_first()?;
    let mut joined = first.inputs.clone();
    for sample in others {
        for (into, from) in joined.iter_mut().zip(&sample.inputs) {
            if into.shape.get(1..) != from.shape.get(1..) {
                return None;
            }
            *into.shape.first_mut()? += from.shape.first()?;
            extend(&mut into.values, &from.values)?;
        }
    }
    // Every tensor of one request has the same number of rows.
    let rows = joined.first()?.shape.first()?;
    joined.iter().all(|tensor| tensor.shape.first() == Some(rows)).then_some(joined)
}

/// The answer to joined inputs, taken apart; `None` where it has not as many rows as were sent.
pub(super) fn split(samples: &[&Sample], answer: &[Tensor]) -> Option<Vec<Vec<Tensor>>> {
    let rows: Vec<usize> = samples.iter().map(|sample| sample.inputs.first().and_then(|input| input.shape.first()).copied()).collect::<Option<_>>()?;
    let total: usize = rows.iter().sum();
    if answer.iter().any(|tensor| tensor.shape.first() != Some(&total)) {
        return None;
    }
    let mut start = 0;
    let mut parts = Vec::with_capacity(rows.len());
    for rows in rows {
        let part = answer.iter().map(|tensor| {
            let width: usize = tensor.shape.iter().skip(1).product();
            let mut shape = tensor.shape.clone();
            *shape.first_mut()? = rows;
            Tensor::new(tensor.name.clone(), shape, slice(&tensor.values, start * width, rows * width)?).ok()
        });
        parts.push(part.collect::<Option<Vec<_>>>()?);
        start += rows;
    }
    Some(parts)
}

macro_rules! by_type {
    ($($variant:ident),*) => {
        fn extend(into: &mut Values, from: &Values) -> Option<()> {
            match (into, from) {
                $((Values::$variant(into), Values::$variant(from)) => into.extend_from_slice(from),)*
                _ => return None,
            }
            Some(())
        }

        fn slice(values: &Values, start: usize, length: usize) -> Option<Values> {
            match values {
                $(Values::$variant(values) => values.get(start..start + length).map(|values| Values::$variant(values.to_vec())),)*
            }
        }
    };
}

by_type!(Bool, U8, U16, U32, U64, I8, I16, I32, I64, F32, F64, Bytes);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rows: usize, from: f32) -> Sample {
        let tensor = |name: &str| Tensor::new(name, [rows, 2], Values::F32((0..rows * 2).map(|index| from + index as f32).collect())).unwrap();
        Sample { name: String::new(), tags: Vec::new(), inputs: vec![tensor("x")], outputs: vec![tensor("y")] }
    }

    #[test]
    fn what_was_joined_comes_apart_again() {
        let samples = [sample(1, 0.0), sample(3, 10.0), sample(2, 20.0)];
        let all: Vec<&Sample> = samples.iter().collect();
        let joined = join(&all).unwrap();
        assert_eq!(joined[0].shape, [6, 2]);
        let echo: Vec<Tensor> = joined.into_iter().map(|tensor| tensor.renamed("y")).collect();
        let parts = split(&all, &echo).unwrap();
        assert!(parts.iter().zip(&samples).all(|(part, sample)| *part == sample.outputs));
    }

    #[test]
    fn an_answer_with_other_rows_is_no_batch() {
        let samples = [sample(1, 0.0), sample(1, 2.0)];
        let all: Vec<&Sample> = samples.iter().collect();
        assert_eq!(split(&all, &samples[0].outputs), None);
        let mut wider = sample(1, 0.0);
        wider.inputs[0].shape = vec![1, 1, 2];
        assert_eq!(join(&[&samples[0], &wider]), None);
    }
}
