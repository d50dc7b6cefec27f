//! Graphs that rten is known to compute wrongly or to crash on, found by looking at them. Every refusal names node and operator.
//!
//! Measured against ONNX Runtime on 70 models and the 2,024 cases of ONNX's backend tests. What is not listed here may still be wrong, so this comes
//! before [`prove`](super::prove()), never instead of it.

use std::collections::HashMap;

use super::EngineError;
use crate::onnx::{
    ModelProto,
    graph::{constants, describe, each_graph},
    proto::{AttributeProto, GraphProto, NodeProto, TensorProto, is_default_domain},
    tensor::{to_tensor, type_name},
};

// `TensorProto.DataType` numbers.
const INT64: i32 = 7;
const BOOL: i32 = 9;

/// Types that rten has (f32, u8, i8, i32) or converts without loss of meaning (i64 within 32 bits, bool).
const fn computes(element_type: i32) -> bool {
    matches!(element_type, 1 | 2 | 3 | 6 | INT64 | BOOL)
}

/// Refuses the first trap of a graph.
pub fn refuse(model: &ModelProto) -> Result<(), EngineError> {
    let opset = model.opset();
    if let Some(function) = model.functions.first() {
        // Their bodies have operator sets of their own; models that are trained and exported hardly use them.
        return Err(trap(format!("function {:?}", function.name), "model-local functions were not verified"));
    }
    each_graph(model, &mut |graph| {
        let producers = graph.producers();
        types(graph)?;
        constants_fit(graph)?;
        graph.node.iter().try_for_each(|node| operator(node, opset, &producers))
    })
}

fn trap(at: impl Into<String>, why: impl Into<String>) -> EngineError {
    EngineError::Trap { at: at.into(), why: why.into() }
}

/// Declared types of inputs, outputs and everything between them.
fn types(graph: &GraphProto) -> Result<(), EngineError> {
    let listed = [("input", &graph.input), ("output", &graph.output), ("value", &graph.value_info)];
    for (what, info) in listed.into_iter().flat_map(|(what, infos)| infos.iter().map(move |info| (what, info))) {
        let Some(r#type) = &info.r#type else { continue };
        match &r#type.tensor_type {
            None => return Err(trap(format!("{what} {:?}", info.name), "is not a tensor")),
            // 0 is what shape inference leaves where it does not know.
            Some(tensor) if tensor.elem_type != 0 && !computes(tensor.elem_type) => {
                return Err(trap(format!("{what} {:?}", info.name), format!("{} would be computed in another precision", type_name(tensor.elem_type))));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Types of constants, and 64-bit integers that 32 bits cannot hold.
fn constants_fit(graph: &GraphProto) -> Result<(), EngineError> {
    for (at, tensor) in constants(graph) {
        if !computes(tensor.data_type) {
            return Err(trap(at, format!("{} would be computed in another precision", type_name(tensor.data_type))));
        }
        if tensor.data_type == INT64 && !tensor.name.is_empty() && only_bounds_of_slices(graph, &tensor.name) {
            // "To the end" is written as the largest integer; cut to 32 bits it still is beyond every end.
            continue;
        }
        if let Some(value) = beyond_32_bits(tensor) {
            return Err(trap(at, format!("the value {value} does not fit 32 bits")));
        }
    }
    for node in graph.node.iter().filter(|node| node.op_type == "Constant" && is_default_domain(&node.domain)) {
        let sliced = node.output.first().is_some_and(|name| only_bounds_of_slices(graph, name));
        let values = node.attribute.iter().filter(|attribute| matches!(attribute.name.as_str(), "value_int" | "value_ints"));
        let found = values.flat_map(|attribute| attribute.ints.iter().copied().chain([attribute.i])).find(|value| i32::try_from(*value).is_err());
        if let (Some(value), false) = (found, sliced) {
            return Err(trap(describe(node), format!("the value {value} does not fit 32 bits")));
        }
    }
    Ok(())
}

fn only_bounds_of_slices(graph: &GraphProto, name: &str) -> bool {
    let mut uses = graph.node.iter().filter(|node| node.input.iter().any(|input| input == name)).peekable();
    let output = graph.output.iter().any(|output| output.name == name);
    !output && uses.peek().is_some() && uses.all(|node| node.op_type == "Slice" && node.input.first().is_none_or(|data| data != name))
}

fn beyond_32_bits(tensor: &TensorProto) -> Option<i64> {
    if tensor.data_type != INT64 {
        return None;
    }
    // A constant that cannot be read is the loader's to refuse.
    match to_tensor(tensor).ok()?.values {
        crate::tensor::Values::I64(values) => values.into_iter().find(|value| i32::try_from(*value).is_err()),
        _ => None,
    }
}

fn text(attribute: Option<&AttributeProto>) -> &[u8] {
    attribute.map_or(&[], |attribute| &attribute.s)
}

fn operator(node: &NodeProto, opset: i64, producers: &HashMap<&str, &NodeProto>) -> Result<(), EngineError> {
    let refuse = |why: &str| Err(trap(describe(node), why));
    if node.domain.starts_with("ai.onnx.ml") {
        return refuse("trees, scalers and other classical operators (ai.onnx.ml) are not computed");
    }
    for attribute in node.attribute.iter().filter(|attribute| matches!(attribute.name.as_str(), "to" | "dtype")) {
        let number = i32::try_from(attribute.i).unwrap_or(-1);
        if node.op_type == "Cast" && number == BOOL {
            return refuse("a Cast to BOOL keeps values other than 0 and 1");
        }
        if !computes(number) {
            return refuse(&format!("{} would be computed in another precision", type_name(number)));
        }
    }
    if node.op_type == "CastLike" {
        return refuse("the type that it casts to is not known before it runs");
    }
    match node.op_type.as_str() {
        "Softmax" | "LogSoftmax" | "Hardmax" if opset < 13 => refuse(&format!("below operator set 13 (here {opset}) it flattens its input, which is not done")),
        "NonMaxSuppression" => refuse("boxes are suppressed differently"),
        "ArgMax" | "ArgMin" if ties_can_decide(node, producers) => refuse("among equal values it takes the last where ONNX takes the first"),
        "MatMulInteger" | "ConvInteger" | "QLinearMatMul" | "QLinearConv" => refuse("int8 products are rounded differently"),
        "Resize" | "Upsample" if text(node.attribute("mode")) == b"cubic" => refuse("cubic interpolation differs"),
        "LSTM" | "GRU" | "RNN" if node.input.get(4).is_some_and(|input| !input.is_empty()) => refuse("sequence_lens is ignored"),
        "LRN" | "Scan" => refuse("is computed wrongly or not at all"),
        _ => Ok(()),
    }
}

/// Sums of products are hardly ever equal; anything rounded, clipped, counted or compared often is.
fn ties_can_decide(node: &NodeProto, producers: &HashMap<&str, &NodeProto>) -> bool {
    let last = node.attribute("select_last_index").is_some_and(|attribute| attribute.i != 0);
    let mut producer = node.input.first().and_then(|input| producers.get(input.as_str()));
    // These move values about; bounded, because a broken graph may be a ring.
    for _ in 0..16 {
        match producer {
            Some(above) if matches!(above.op_type.as_str(), "Identity" | "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten") => {
                producer = above.input.first().and_then(|input| producers.get(input.as_str()));
            }
            _ => break,
        }
    }
    last || !producer.is_some_and(|above| matches!(above.op_type.as_str(), "Gemm" | "MatMul" | "Conv" | "Add" | "Softmax" | "LogSoftmax"))
}
