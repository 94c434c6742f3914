"""The list of public names: whoever changes it changes it here too, and says so in the changelog."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

NAMES = {
    "elm_neuro": (
        "ALIF ALIFCell ALIFConfig ALIFState BranchELM ELM ELMCell ELMConfig ELMNetwork ELMNetworkClassifier"
        " ELMState LIF NetworkState SpikeEvents SpikeOutput SpikingELM SpikingELMState backends checkpoints"
        " last_output pretrained suggest"
    ),
    "elm_neuro.nn": (
        "ALIF ALIFCell ALIFConfig ALIFState BranchELM DropoutMasks ELM ELMCell ELMConfig ELMNetwork"
        " ELMNetworkClassifier ELMNetworkClassifierConfig ELMNetworkClassifierState ELMNetworkConfig ELMState"
        " ELMTraces LIF Layer NetworkState SpikeOutput SpikingELM SpikingELMConfig SpikingELMState check_layer"
        " is_layer last_output output_shape parameter_groups suggest"
    ),
    "elm_neuro.functional": (
        "ALIFParameters ALIFState ATan Boxcar ELMParameters ELMState FastSigmoid MultiGaussian NetworkParams"
        " NetworkRule NetworkState SOMA_BIAS_MV SOMA_CAP_MV SOMA_SCALE_MV Sigmoid Surrogate Wiring alif_step"
        " bernoulli_spike bounded_tau branch_input branch_matrix branch_update decay elm_step full_wiring"
        " memory_gain memory_proposal memory_update network_step proto_tau random_wiring relu_squared"
        " routing_index scaled_tanh small_world_wiring spaced_tau window_wiring zero_network_state zero_state"
    ),
    "elm_neuro.checkpoints": (
        "NeuronIOPrediction PublishedNeuron UPSTREAM_URL cards_page fetch_upstream from_pretrained from_upstream"
        " list_pretrained model_card neuronio_head push_to_hub save_pretrained"
    ),
    "elm_neuro.pretrained": (
        "Kind Saved blank check_tensors describe described from_pretrained front_matter kind_of kinds push_to_hub"
        " register save_pretrained weights_of with_tensors"
    ),
    "elm_neuro.adapters.snntorch": "ALIF BranchELM Cell ELM ELMSequence Layer patch reset unpatch",
    "elm_neuro.adapters.norse": (
        "ALIF ALIFCell ALIFState BranchELM Cell ELM ELMCell Layer SpikingELMState detach suggest"
    ),
    "elm_neuro.adapters.spikingjelly": "ALIF BranchELM ELM Layer",
    "elm_neuro.adapters.nir": "ElmNeuroLayer from_nir module_map node_map read register to_nir unregister write",
    "elm_neuro.backends": (
        "ALIFBackend Backend ELMBackend NetworkBackend NetworkRecord Offer Operator SpikeRule alif available"
        " elm network offer project resolve scan spiking_scan untraced use"
    ),
    "elm_neuro.datasets": (
        "ChannelDrop ChannelJitter EventDrop FixedPairing InputDropout KnownNeuron NeuronIODataset"
        " PoolChannels SHDAdding SHDDataset SHD_WORDS Simulations SpikeRecordings SpikeTrains SpokenDigits Sweep"
        " TextStreams TextStretch TimeJitter TimeWarp ToRaster UpstreamPairing add_labels alphabet"
        " convert_neuronio cut_sweeps fingerprint fixed_pairs make_ephys make_nmnist open_simulations"
        " rank_speakers read_enwik8 read_manifest read_nmnist read_nmnist_file read_shd read_simulation_file"
        " read_sweeps sample_key simulation_files soma_target split_files split_speakers split_text splitmix64"
        " unseen_speakers upstream_pairs upstream_split verify_neuronio write_nmnist_file write_shd"
        " write_sweeps"
    ),
    "elm_neuro.datasets.lra": (
        "Convention Drawing ListOpsSettings MadeListOps TokenBatch TokenDataset TokenSequences Vocabulary cached "
        "content_key draw_pathfinder held_out image_split make_listops make_pathfinder pathfinder_split read_digits "
        "read_image read_listops read_pathfinder read_retrieval read_text to_grey to_levels token_events "
        "write_listops write_pathfinder"
    ),
    "elm_neuro.training": (
        "ALIFNetwork Binning ByteModel ImageDataModule Interval LIFNetwork LIFRegression LSTMClassifier"
        " LSTMRegression LeakyReadout ListOpsDataModule NMNISTDataModule NeuronFit NeuronIODataModule"
        " NeuronIOLoss NeuronIORegression NormalisedReadout PathfinderDataModule Prediction PredictionWriter"
        " Protocols RecurrentLIFClassifier ResidualStack RetrievalDataModule SHDAddingDataModule SHDDataModule"
        " SaveNeuron SequenceClassifier SequentialDigitsDataModule SpikeClassification SpikingNetwork"
        " SpokenDigitsDataModule TestReport TextDataModule TextStreamDataModule TimeBudget TokenClassification"
        " TokenClassifier TokenDataModule TokenLSTM TokenReport TwoTowers Windows drop_input evaluate_neuronio"
        " evaluation_figures evaluation_remarks evaluation_table explained_temporal_variance fit_neuron"
        " flops_per_step linear_elm neuronio_ablation neuronio_loss neuronio_workings num_parameters"
        " predict_neuronio predict_protocols quiet receptive_fields roc_curves seed_interval"
        " spike_trains_beside summarise_protocols"
    ),
    "elm_neuro.export": "ExportError Graph Lowering Trace Value VerifyReport register to_onnx verify",
    "elm_neuro.adapters.tonic": (
        "ChannelDrop ChannelJitter EventDrop FixedPairing InputDropout PoolChannels SHD SHDAdding TimeJitter"
        " TimeWarp ToRaster UpstreamPairing"
    ),
    "elm_neuro.plotting": (
        "BLUE GREEN INK MOST_LINES ORANGE PALE PALETTE PURPLE Record SKY STYLE VERMILION accuracies by_latency"
        " confusion_matrix draw_accuracy draw_memory draw_outputs draw_raster elm_network label_panel"
        " learning_curves network_workings note rasters recordings save spike_responses styled time_constants"
        " timescales weight_fields workings"
    ),
    "elm_neuro.look": (
        "Drive Part Responses branch_fields look parts_of poisson_drive read_drive spike_responses time_constants"
    ),
    "elm_neuro.demo": (
        "ADDING_SETTINGS CONTROL DemoRun DemoSettings MIXED TUNED Tuned build data_module metrics_of quiet_trainer"
        " run_demo table_of verdict write_figures write_neuron write_report"
    ),
    "elm_neuro.cli": "main recipes",
}
HOSTS = {
    "export": "onnx",
    "training": "lightning",
    "demo": "lightning",
    "cli": "lightning",
    "plotting": "matplotlib",
    "look": "matplotlib",
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names_are_the_listed_ones_and_there(module: str) -> None:
    room = module.rpartition(".")[2]
    if ".adapters." in module or room in HOSTS:
        pytest.importorskip(HOSTS.get(room, room))
    found: ModuleType = importlib.import_module(module)
    assert sorted(found.__all__) == sorted(NAMES[module].split())
    assert all(hasattr(found, name) for name in found.__all__)
