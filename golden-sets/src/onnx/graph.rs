//! What a graph takes and gives, and a walk over all its nodes, those inside other nodes included.

use super::{
    ModelProto, OnnxError,
    proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto},
    tensor::{datatype, type_name},
};
use crate::tensor::{DataType, RANK_MAX};

/// One input or output of a model. -1 is a dimension that may be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub datatype: DataType,
    pub shape: Vec<i64>,
}

/// Inputs (weights that are listed as inputs left out) and outputs, in the graph's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

impl Signature {
    /// Refuses ports that are not tensors of a supported type, naming them.
    pub fn of(model: &ModelProto) -> Result<Self, OnnxError> {
        let Some(graph) = &model.graph else {
            return Err(OnnxError::Decode { what: "an ONNX model", why: "it holds no graph".into() });
        };
        let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
        let inputs = graph.input.iter().filter(|input| !is_weight(&input.name)).map(|info| port("input", info)).collect::<Result<_, _>>()?;
        let outputs = graph.output.iter().map(|info| port("output", info)).collect::<Result<_, _>>()?;
        Ok(Self { inputs, outputs })
    }
}

fn port(what: &str, info: &ValueInfoProto) -> Result<Port, OnnxError> {
    let unusable = |why: String| OnnxError::Unusable { at: format!("{what} {:?}", info.name), why };
    let Some(tensor) = info.r#type.as_ref().and_then(|r#type| r#type.tensor_type.as_ref()) else {
        return Err(unusable("is not a tensor (sequences, maps and optionals are not supported; for scikit-learn models convert with zipmap=False)".into()));
    };
    let Some(datatype) = datatype(tensor.elem_type) else {
        return Err(unusable(format!("{} is not supported; add a Cast to FLOAT to the model", type_name(tensor.elem_type))));
    };
    let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    if dims.len() > RANK_MAX {
        return Err(unusable(format!("has {} dimensions; at most {RANK_MAX} are supported", dims.len())));
    }
    // Old exporters write 0 for a batch of any size.
    let shape = dims.iter().map(|dim| dim.dim_value.filter(|value| *value > 0).unwrap_or(-1)).collect();
    Ok(Port { name: info.name.clone(), datatype, shape })
}

/// Calls `visit` for every graph: the model's own, then those inside nodes (`If`, `Loop`, …). Stops at the first error.
pub fn each_graph<E>(model: &ModelProto, visit: &mut impl FnMut(&GraphProto) -> Result<(), E>) -> Result<(), E> {
    fn inside<E>(nodes: &[NodeProto], visit: &mut impl FnMut(&GraphProto) -> Result<(), E>) -> Result<(), E> {
        // As deep as the message was nested, which its decoder bounds.
        for graph in nodes.iter().flat_map(|node| &node.attribute).flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            visit(graph)?;
            inside(&graph.node, visit)?;
        }
        Ok(())
    }
    if let Some(graph) = &model.graph {
        visit(graph)?;
        inside(&graph.node, visit)?;
    }
    model.functions.iter().try_for_each(|function| inside(&function.node, visit))
}

/// Every constant of a graph with where it stands: initializers and tensors in attributes.
pub fn constants(graph: &GraphProto) -> impl Iterator<Item = (String, &TensorProto)> {
    let weights = graph.initializer.iter().map(|tensor| (format!("initializer {:?}", tensor.name), tensor));
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref()).map(|tensor| (format!("initializer {:?}", tensor.name), tensor));
    weights.chain(sparse).chain(graph.node.iter().flat_map(|node| {
        node.attribute.iter().flat_map(move |attribute| attribute.t.iter().chain(&attribute.tensors).map(move |tensor| (describe(node), tensor)))
    }))
}

/// A node as messages name it: `node "relu_1" (Relu)`.
pub fn describe(node: &NodeProto) -> String {
    let name = if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name };
    format!("node {name:?} ({})", node.op_type)
}

/// Refuses weights that are in another file: a set is one model file, whose digest is checked.
pub fn refuse_external_data(model: &ModelProto) -> Result<(), OnnxError> {
    each_graph(model, &mut |graph| {
        let external = constants(graph).find(|(_, tensor)| tensor.data_location != 0 || !tensor.external_data.is_empty());
        external.map_or(Ok(()), |(at, tensor)| {
            let file = tensor.external_data.iter().find(|entry| entry.key == "location").map_or("", |entry| entry.value.as_str());
            Err(OnnxError::Unusable {
                at,
                why: format!("its values are in another file ({file:?}), which the digest would not cover; save the model in one file: onnx.save_model(onnx.load(path), path, save_as_external_data=False)"),
            })
        })
    })
}
