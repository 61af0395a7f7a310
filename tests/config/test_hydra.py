"""What mth needs of Hydra's public face. A release that breaks one of these says so here."""

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode

from hydra_plugins.mth_launcher import GridLauncher, GridSweeper
from mth.config.compose import compose_all, composer


def test_compose_returns_hydras_own_node_with_mode_sweep_and_launcher():
    with composer():
        node = compose_all(["experiment=fig3_sparsity"]).hydra
    assert node.mode is RunMode.MULTIRUN
    assert list(node.sweeper.params) == ["sparsity.percent", "mask_seed"]
    assert (node.launcher.kind, node.launcher._target_) == ("local", "hydra_plugins.mth_launcher.GridLauncher")
    assert node.sweeper._target_ == "hydra_plugins.mth_launcher.GridSweeper"


def test_overrides_are_parsed_into_sweeps_values_and_hydras_own():
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b='x y'", "hydra.launcher.jobs=2", "c=range(0,3)", "~d"])
    assert [override.is_sweep_override() for override in parsed] == [True, False, False, True, False]
    assert [override.is_hydra_override() for override in parsed] == [False, False, True, False, False]
    assert list(parsed[0].sweep_string_iterator()) == ["1", "2"]
    assert (parsed[1].get_key_element(), parsed[1].value()) == ("b", "x y")
    assert parsed[4].is_delete()


def test_a_composer_inside_another_hydra_gives_it_back():
    with composer():
        outer = GlobalHydra.instance().hydra
        with composer():
            assert GlobalHydra.instance().hydra is not outer
        assert GlobalHydra.instance().hydra is outer


def test_plugins_are_launcher_and_sweeper_by_hydras_abstract_classes():
    assert issubclass(GridLauncher, Launcher)
    assert issubclass(GridSweeper, Sweeper)
    assert callable(Plugins.instance().instantiate_launcher)
    assert callable(compose)
    assert callable(initialize_config_dir)
    assert ConfigStore.instance() is not None
